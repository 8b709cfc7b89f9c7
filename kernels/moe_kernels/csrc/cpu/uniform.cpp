// Uniform numbers on the CPU. The loop is plain, for the compiler to vectorise.
#include "../hash.h"
#include "../interface.h"

namespace {

void fill(uint32_t low, uint32_t high, int64_t count, float* values) {
  for (int64_t i = 0; i < count; i++) values[i] = uniform_number(low, high, uint32_t(i));
}

}  // namespace

int moe_uniform(int32_t streams, int64_t count, int32_t threads, const int32_t* low, const int32_t* high,
                float* values, void*) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && streams > 1)
  for (int64_t s = 0; s < streams; s++) fill(uint32_t(low[s]), uint32_t(high[s]), count, values + s * count);
  return 0;
}
