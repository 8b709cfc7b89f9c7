// Runs the kernels of router statistics, load balancing and uniform numbers against the serial computation.
//
//   statistics_driver what=router tokens=97 experts=40 choices=2 score=sigmoid bias=1
//   statistics_driver what=capacity tokens=700 experts=40 choices=3 group=300 capacity=9 priority=1
//   statistics_driver what=balance experts=40
//   statistics_driver what=uniform streams=3 count=5000
//
// Inputs have few different values, so that there are ties; some logits are masked, some edges do not exist.
// Exit code 0: every result was right, nothing was written beside it, and a second run gave the same bits.
#include "guarded.h"
#include "serial_statistics.h"
#include "settings.h"

#include <cstdio>
#include <random>

// One of the `count` values 0, step, 2 step, ...
struct Draw {
  std::minstd_rand state;
  explicit Draw(int64_t seed) : state(unsigned(seed * 9176 + 1)) { state.discard(10); }
  int below(int count) { return int(state() / 64 % unsigned(count)); }
  float steps(int count, float step) { return float(below(count)) * step; }
};

static bool is_near(double found, double due) {
  return std::fabs(found - due) <= 1e-5 * (1 + std::fabs(due));
}

struct RouterResult {
  Guarded<float> scores, weights, lse, importance, z;
  Guarded<int32_t> expert_ids, loads;

  explicit RouterResult(const MoeRouter& router)
      : scores(router.tokens * router.experts),
        weights(router.tokens * router.choices),
        lse(router.tokens),
        importance(router.experts),
        z(1),
        expert_ids(router.tokens * router.choices),
        loads(router.experts) {}

  int run(const MoeRouter& router, const float* logits, const float* bias) {
    Guarded<char> workspace(moe_router_workspace_bytes(router));
    const int status = moe_router_forward(router, logits, bias, scores.data(), expert_ids.data(),
                                          weights.data(), lse.data(), loads.data(), importance.data(),
                                          z.data(), workspace.data(), nullptr);
    return (status != 0) + workspace.overrun() + scores.overrun() + weights.overrun() + lse.overrun() +
           importance.overrun() + z.overrun() + expert_ids.overrun() + loads.overrun();
  }
  bool operator==(const RouterResult& other) const {
    return scores == other.scores && weights == other.weights && lse == other.lse &&
           importance == other.importance && z == other.z && expert_ids == other.expert_ids &&
           loads == other.loads;
  }
};

static int check_forward(const MoeRouter& router, const Guarded<float>& logits, const Guarded<float>* bias,
                         const RouterResult& result) {
  int wrong = 0;
  double z = 0;
  std::vector<double> importance(router.experts), scores;
  std::vector<int32_t> loads(router.experts);
  for (int token = 0; token < router.tokens; token++) {
    const float *row = logits.data() + token * router.experts,
                *found = result.scores.data() + token * router.experts;
    const double lse = serial_scores(router, row, scores);
    wrong += !is_near(result.lse[token], lse);
    z += lse * lse;
    std::vector<float> keys(row, row + router.experts);
    for (int e = 0; e < router.experts; e++) {
      wrong += !is_near(found[e], scores[e]);
      importance[e] += scores[e];
      if (bias) keys[e] = found[e] + (*bias)[e];
    }
    const std::vector<int> chosen = serial_choice(keys, row, router.choices);
    for (int k = 0; k < router.choices; k++) {
      const int edge = token * router.choices + k;
      wrong += result.expert_ids[edge] != chosen[k];
      wrong += result.weights[edge] != (chosen[k] < 0 ? 0 : found[chosen[k]]);
      if (chosen[k] >= 0) loads[chosen[k]]++;
    }
  }
  for (int e = 0; e < router.experts; e++)
    wrong += result.loads[e] != loads[e] || !is_near(result.importance[e], importance[e]);
  return wrong + !is_near(result.z[0], z);
}

// Gradients may be missing, each by itself: bit i of `given` is that of the i-th.
static int check_backward(const MoeRouter& router, const Guarded<float>& logits, const RouterResult& result,
                          Draw& draw, int given) {
  Guarded<float> grad_scores(router.tokens * router.experts), grad_weights(router.tokens * router.choices),
      grad_importance(router.experts), grad_z(1), found(router.tokens * router.experts);
  for (Guarded<float>* grads : {&grad_scores, &grad_weights, &grad_importance, &grad_z})
    for (float& grad : *grads) grad = draw.steps(9, 0.25f) - 1;
  const auto if_given = [&](int bit, const Guarded<float>& grads) {
    return given >> bit & 1 ? grads.data() : nullptr;
  };
  int wrong = moe_router_backward(router, if_given(0, grad_scores), if_given(1, grad_weights),
                                  if_given(2, grad_importance), if_given(3, grad_z), logits.data(),
                                  result.scores.data(), result.expert_ids.data(), result.lse.data(),
                                  found.data(), nullptr) != 0;
  for (int token = 0; token < router.tokens; token++) {
    std::vector<double> grads(router.experts);
    for (int e = 0; e < router.experts; e++)
      grads[e] = (given & 1 ? grad_scores[token * router.experts + e] : 0) +
                 (given & 4 ? grad_importance[e] : 0);
    for (int edge = token * router.choices; edge < (token + 1) * router.choices; edge++)
      if (given & 2 && result.expert_ids[edge] >= 0) grads[result.expert_ids[edge]] += grad_weights[edge];
    const std::vector<double> due =
        serial_backward(router, logits.data() + token * router.experts, grads, given & 8 ? grad_z[0] : 0);
    for (int e = 0; e < router.experts; e++) wrong += !is_near(found[token * router.experts + e], due[e]);
  }
  return wrong + found.overrun();
}

static int run_router(const Settings& settings, Draw& draw) {
  MoeRouter router{};
  router.tokens = int(settings.number("tokens", "97"));
  router.experts = int(settings.number("experts", "40"));
  router.choices = int(settings.number("choices", "2"));
  router.score = settings.text("score", "softmax") == "sigmoid" ? MOE_SIGMOID : MOE_SOFTMAX;
  Guarded<float> logits(router.tokens * router.experts), bias(router.experts);
  for (float& logit : logits) {
    const int kind = draw.below(10);  // some are masked, some so low that their scores are equal
    logit = kind < 2 ? -INFINITY : draw.steps(17, 0.25f) - (kind == 2 ? 150 : 2);
  }
  for (int e = 0; e < router.experts && router.tokens > 1; e++) logits[router.experts + e] = -INFINITY;
  for (float& value : bias) value = draw.steps(3, 0.5f);
  const Guarded<float>* given_bias = settings.number("bias", "0") ? &bias : nullptr;
  RouterResult result(router), again(router);
  int wrong = 0;
  for (RouterResult* run : {&result, &again})
    wrong += run->run(router, logits.data(), given_bias ? bias.data() : nullptr);
  wrong += check_forward(router, logits, given_bias, result) + !(result == again);
  for (const int given : {15, 0, 1, 2, 4, 8}) wrong += check_backward(router, logits, result, draw, given);
  return wrong;
}

static int run_capacity(const Settings& settings, Draw& draw) {
  MoeCapacity limit{};
  limit.tokens = int(settings.number("tokens", "700"));
  limit.experts = int(settings.number("experts", "40"));
  limit.choices = int(settings.number("choices", "3"));
  limit.group_tokens = int(settings.number("group", "300"));
  limit.capacity = int(settings.number("capacity", "9"));
  const int edges = limit.tokens * limit.choices;
  const int groups = (limit.tokens + limit.group_tokens - 1) / limit.group_tokens;
  Guarded<int32_t> expert_ids(edges), kept(edges), positions(edges), drops(groups * limit.experts);
  Guarded<float> priorities(limit.tokens);
  for (int32_t& expert : expert_ids) expert = draw.below(6) == 0 ? -1 : draw.below(limit.experts);
  const float special[] = {NAN, -NAN, 0.f, -0.f, INFINITY, -INFINITY};
  for (float& priority : priorities)
    priority = draw.below(4) == 0 ? special[draw.below(6)] : draw.steps(9, 0.5f) - 2;
  const float* given = settings.number("priority", "0") ? priorities.data() : nullptr;
  Guarded<char> workspace(moe_capacity_workspace_bytes(limit));
  int wrong = moe_limit_capacity(limit, expert_ids.data(), given, kept.data(), positions.data(), drops.data(),
                                 workspace.data(), nullptr) != 0;
  const Limited due = serial_limit(limit, expert_ids.data(), given);
  wrong += !(kept == due.kept) + !(positions == due.positions) + !(drops == due.drops);
  return wrong + kept.overrun() + positions.overrun() + drops.overrun() + workspace.overrun();
}

// Loads are so large that their sum needs 64 bits, and one is the mean exactly.
static int run_balance(const Settings& settings, Draw& draw) {
  const int experts = int(settings.number("experts", "40")), tokens = int(settings.number("tokens", "1000"));
  const int32_t mean = (1 << 30) - 1;
  Guarded<int32_t> loads(experts);
  Guarded<float> importance(experts), bias(experts), loss(1), slopes(experts), updated(experts);
  for (int e = 0; e < experts; e++) {
    loads[e] = e % 2 == 0 ? mean + (e + 1 < experts) * draw.below(3) : 2 * mean - loads[e - 1];
    importance[e] = draw.steps(64, 0.25f);
    bias[e] = draw.steps(64, 0.25f);
  }
  if (settings.number("empty", "0")) std::fill(loads.begin(), loads.end(), 0);
  int wrong = moe_balance_loss(experts, tokens, loads.data(), importance.data(), loss.data(), slopes.data(),
                               nullptr) != 0;
  wrong += moe_update_bias(experts, 0.25f, loads.data(), bias.data(), updated.data(), nullptr) != 0;
  const int64_t all = std::accumulate(loads.begin(), loads.end(), int64_t(0));
  double due = 0;
  for (int e = 0; e < experts; e++) {
    const double slope = all > 0 && tokens > 0 ? double(experts) * loads[e] / (double(all) * tokens) : 0;
    due += slope * importance[e];
    wrong += !(std::fabs(slopes[e] - slope) <= 1e-5 * slope);
    const int64_t above = int64_t(loads[e]) * experts - all;
    wrong += updated[e] != bias[e] + (above > 0 ? -0.25f : above < 0 ? 0.25f : 0.f);
  }
  wrong += !(std::fabs(loss[0] - due) <= 1e-5 * due);
  return wrong + loss.overrun() + slopes.overrun() + updated.overrun();
}

// Keys are any words; the hash is written out in 64 bits.
static int run_uniform(const Settings& settings, Draw& draw) {
  const int streams = int(settings.number("streams", "3")), count = int(settings.number("count", "5000"));
  Guarded<int32_t> low(streams), high(streams);
  Guarded<float> values(streams * count);
  for (Guarded<int32_t>* keys : {&low, &high})
    for (int32_t& key : *keys) key = int32_t(draw.state() * 2654435761u);
  int wrong = moe_uniform(streams, count, 1, low.data(), high.data(), values.data(), nullptr) != 0;
  for (int s = 0; s < streams; s++)
    for (int i = 0; i < count; i++) {
      uint64_t bits = (uint64_t(i) * 0x9E3779B9 + uint32_t(low[s])) % (uint64_t(1) << 32);
      bits = (bits ^ bits >> 16) * 0x7FEB352D % (uint64_t(1) << 32) ^ uint32_t(high[s]);
      bits = (bits ^ bits >> 15) * 0x846CA68B % (uint64_t(1) << 32);
      wrong += values[s * count + i] != double((bits ^ bits >> 16) % (1 << 24)) / (1 << 24);
    }
  return wrong + values.overrun();
}

int main(int count, char** arguments) {
  const Settings settings(count, arguments);
  const std::string what = settings.text("what", "router");
  Draw draw(settings.number("seed", "1"));
  const int wrong = what == "router"     ? run_router(settings, draw)
                    : what == "capacity" ? run_capacity(settings, draw)
                    : what == "uniform"  ? run_uniform(settings, draw)
                                         : run_balance(settings, draw);
  if (wrong) std::printf("%d wrong\n", wrong);
  std::printf("%s\n", wrong ? "WRONG" : "right");
  return wrong != 0;
}
