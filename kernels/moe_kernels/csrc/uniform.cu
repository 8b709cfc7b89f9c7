// Uniform numbers by a hash of the keys of a stream and the place in it. A thread block makes a chunk of one stream.
#include "hash.h"
#include "interface.h"
#include "portable.cuh"

namespace {

constexpr int THREADS = 256, CHUNK = 8 * THREADS;

__global__ void __launch_bounds__(THREADS)
uniform_kernel(int64_t count, int64_t chunks, const int32_t* low, const int32_t* high, float* values) {
  const int64_t stream = blockIdx.x / chunks, begin = blockIdx.x % chunks * CHUNK;
  const uint32_t first_key = uint32_t(low[stream]), second_key = uint32_t(high[stream]);
  const int64_t end = begin + CHUNK < count ? begin + CHUNK : count;
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS)
    values[stream * count + i] = uniform_number(first_key, second_key, uint32_t(i));
}

}  // namespace

int moe_uniform(int32_t streams, int64_t count, int32_t, const int32_t* low, const int32_t* high, float* values,
                void* stream) {
  const int64_t chunks = (count + CHUNK - 1) / CHUNK, blocks = streams * chunks;
  if (blocks > INT32_MAX) return MOE_UNSUPPORTED;
  if (blocks == 0) return 0;
  return launch(uniform_kernel, unsigned(blocks), THREADS, 0, stream, count, chunks, low, high, values) ? MOE_FAILED : 0;
}
