// The C interface of the kernels, the same for three libraries:
//   cuda      the .cu files, compiled by nvcc
//   emulated  the same .cu files, unmodified, run on the CPU by emulation/cuda_emulation.h
//   cpu       the CPU twin, cpu/*.cpp
// All three export the same functions with the same meaning, but for those at the end that the CPU twin alone has.
// They return 0, or MOE_FAILED with the group's `failure` filled in. `stream` is a CUDA stream and otherwise unused; a CUDA call only enqueues, so its failure shows later.
//
// T tokens of this rank, K choices per token, E experts in all, R ranks, L = E / R experts of a rank, D width of a row.
// An *edge* is one of the T*K (token, choice) pairs; an expert id of -1 means that there is none. A *slot* is the row
// that an edge has at the rank of its expert, where rows stand in order of expert, then source rank, then edge.
// A *slab* is a run of rows in a segment, named by its offset from the segment's start in bytes (a multiple of 256).
#pragma once
#include <stdint.h>

#define MOE_MAX_RANKS 64
#define MOE_MAX_EXPERTS 1024  // of a router
#define MOE_MAX_CHOICES 8     // of a router
#define MOE_MAX_EXCHANGED_EXPERTS 3072  // of a group's exchange
#define MOE_MAX_EXCHANGED_CHOICES 32    // of a group's exchange
#define MOE_FAILED 1
#define MOE_GONE -1  // as `found`: the process of that peer has ended (CPU twin)
#define MOE_UNSUPPORTED 2     // a size beyond these limits; nothing was done

#ifdef __cplusplus
extern "C" {
#endif

enum MoeType { MOE_FLOAT32 = 0, MOE_BFLOAT16 = 1 };
enum MoeScore { MOE_SOFTMAX = 0, MOE_SIGMOID = 1 };
enum MoeOperation { MOE_NONE = 0, MOE_DISPATCH = 1, MOE_COMBINE = 2, MOE_SEND = 3, MOE_PULL = 4 };

// The first thing that went wrong. `peer` did not come to `operation` number `epoch` in time; or it came with another
// operation, `found`. A `peer` of -1: this rank's own launch was refused, and `found` is CUDA's error code.
struct MoeFailure { int32_t operation, peer; uint32_t epoch; int32_t found; };

// One rank's view of the ranks that share the experts out. Constant over its life.
struct MoeGroup {
  int32_t ranks, rank, experts;
  int32_t threads;              // CPU twin: threads that copy rows
  int64_t timeout_ms;           // how long to wait for a peer
  MoeFailure* failure;          // memory that host and kernels see
  uint8_t* segments[MOE_MAX_RANKS];  // every rank's segment, as mapped by this process
  int32_t processes[MOE_MAX_RANKS];  // CPU twin: every rank's process id, not waited for once it has ended; 0: unknown
};

// Rows of T tokens.
struct MoeRows { void* data; int32_t tokens, choices, width, type; };

// Bytes at the start of every segment that belong to the protocol; they must be zero before the first operation.
int64_t moe_control_bytes(int32_t ranks, int32_t experts);
// Bytes of scratch memory for moe_dispatch.
int64_t moe_workspace_bytes(int32_t ranks, int32_t experts, int32_t edges);

// Dispatch: slots by a stable count, counts to every peer, each row straight into its slot in the peer's slab.
//   expert_ids [T*K]; slab: where rows for this rank are to stand, room for `capacity` of them
//   -> slots [T*K] (-1: no edge, or beyond the receiver's capacity), offsets [L+1] (rows of each local expert),
//      overflow [1] (edges of all ranks that had no room: the same number on every rank)
int moe_dispatch(const MoeGroup* group, MoeRows x, const int32_t* expert_ids, int64_t slab, int32_t capacity,
                 int32_t* slots, int32_t* offsets, int32_t* overflow, void* workspace, void* stream);

// Send: rows with known slots, times their weights, into the peers' slabs; and, where `outputs` is given, the dot
// product of each unweighted row with the row in the same slot of that peer's `outputs` slab. Backward of combine.
//   weights [T*K]; outputs [R]; -> grad_weights [T*K] (0 where there is no slot)
int moe_send(const MoeGroup* group, MoeRows x, const int32_t* expert_ids, const int32_t* slots, const float* weights,
             int64_t slab, const int64_t* outputs, float* grad_weights, void* stream);

// Pull: out[t] = sum over choices of weight * the row in the edge's slot of its peer's slab, in order of choice, in
// float32. Without weights they are 1. Combine, and backward of dispatch (`operation` says which).
//   slab: this rank's rows; -> out (x.data), peers [R]: the slabs that were read, for a later moe_send
int moe_pull(const MoeGroup* group, MoeRows out, const int32_t* expert_ids, const int32_t* slots,
             const float* weights, int64_t slab, int64_t* peers, int32_t operation, void* stream);

// A router of T tokens over E experts with K choices per token; K may exceed E.
struct MoeRouter {
  int32_t tokens, experts, choices;
  int32_t score;                // MoeScore
  int32_t threads;              // CPU twin; no result depends on it
};

// A limit on the edges that an expert takes in each group of consecutive tokens; the last group may be shorter.
struct MoeCapacity {
  int32_t tokens, experts, choices;
  int32_t group_tokens, capacity;
  int32_t threads;              // CPU twin; no result depends on it
};

// Bytes of scratch memory for moe_router_forward.
int64_t moe_router_workspace_bytes(MoeRouter router);

// Router statistics, in one pass over the logits. All sums are taken in a fixed order: equal input, equal bits.
// A logit of -inf masks its expert: score 0, gradient 0, never chosen. A choice for which no expert is left is -1
// with weight 0; a token all of whose experts are masked adds 0 to every sum.
//   logits [T*E]; bias [E] or null: added to the scores for the choice only. Without it logits are compared (which
//   orders experts as the scores do, before these are rounded); ties go to the lower expert
//   -> scores [T*E], expert_ids [T*K] best first, weights [T*K] (the scores of the chosen, without bias),
//      lse [T] (log sum exp of the logits; 0 where all are masked), loads [E] (edges per expert),
//      importance [E] (sum of scores over tokens), z [1] (sum of lse^2 over tokens)
int moe_router_forward(MoeRouter router, const float* logits, const float* bias, float* scores,
                       int32_t* expert_ids, float* weights, float* lse, int32_t* loads, float* importance, float* z,
                       void* workspace, void* stream);

// Gradient of the logits from those of scores [T*E], weights [T*K], importance [E] and z [1], each of which may be
// null. The choice itself has no gradient.
int moe_router_backward(MoeRouter router, const float* grad_scores, const float* grad_weights,
                        const float* grad_importance, const float* grad_z, const float* logits,
                        const float* scores, const int32_t* expert_ids, const float* lse, float* grad_logits,
                        void* stream);

// Bytes of scratch memory for moe_limit_capacity.
int64_t moe_capacity_workspace_bytes(MoeCapacity limit);

// Capacity limit. In each group an expert keeps its first `capacity` edges: all first choices come before any
// second one; among equal choices higher priority comes first (NaN before all), among equal priorities the
// earlier token.
//   expert_ids [T*K]; priorities [T] or null: by position
//   -> kept [T*K] (the expert id, or -1 where it was dropped), positions [T*K] (place in the expert's queue, so
//      `capacity` or more where it was dropped; -1: no edge), drops [groups*E] (edges dropped)
int moe_limit_capacity(MoeCapacity limit, const int32_t* expert_ids, const float* priorities, int32_t* kept,
                       int32_t* positions, int32_t* drops, void* workspace, void* stream);

// Balance loss E * sum_i f_i * P_i with f_i = loads_i / sum(loads), without gradient, and P_i = importance_i / tokens.
// 0 where there are no loads or no tokens.
//   -> loss [1], slopes [E] (derivative by importance)
int moe_balance_loss(int32_t experts, int32_t tokens, const int32_t* loads, const float* importance, float* loss,
                     float* slopes, void* stream);

// Loss-free balancing: updated_i = bias_i + rate * sign(mean(loads) - loads_i), the sign in exact integers.
// `updated` may be `bias`.
int moe_update_bias(int32_t experts, float rate, const int32_t* loads, const float* bias, float* updated,
                    void* stream);

// Uniform numbers in [0, 1) by a hash of a stream's two keys and a number's place in it.
//   low, high [streams] -> values [streams*count]; `threads` is the CPU twin's
int moe_uniform(int32_t streams, int64_t count, int32_t threads, const int32_t* low, const int32_t* high,
                float* values, void* stream);

// Of the CPU twin alone.

// Balanced assignment: in each group an expert takes at most tokens / experts (rounded up) of its tokens, so that the
// total score is the largest there is. Scores that are not finite count as the smallest of their group.
//   scores [groups*tokens*experts] -> expert_ids [groups*tokens]
int moe_assign_balanced(int32_t groups, int32_t tokens, int32_t experts, int32_t threads, const float* scores,
                        int32_t* expert_ids, void* stream);

#ifdef __cplusplus
}
#endif
