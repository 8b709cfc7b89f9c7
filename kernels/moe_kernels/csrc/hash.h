// The hash behind uniform numbers, the same bits in every library: all in integers until the last step.
#pragma once
#include <stdint.h>

#include "layout.h"

// Number `place` of the stream with these keys, in [0, 1): xor-shift and multiply, twice, with a key before and between.
MOE_HOST_DEVICE inline float uniform_number(uint32_t low, uint32_t high, uint32_t place) {
  uint32_t bits = place * 0x9E3779B9u + low;
  bits = (bits ^ bits >> 16) * 0x7FEB352Du ^ high;
  bits = (bits ^ bits >> 15) * 0x846CA68Bu;
  return float(int32_t((bits ^ bits >> 16) & 0xFFFFFF)) * 0x1p-24f;
}
