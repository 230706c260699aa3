// The element types the engine updates, in the order of the kernel tables; then those of planes of
// compact formats, which no table has.
#pragma once

#include <cstdint>

namespace fastopt {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

enum class Dtype : uint8_t { float32, float64, bfloat16, float16, uint8, int16, int8 };

constexpr int kDtypes = 4;
constexpr int kElementBytes[] = {4, 8, 2, 2, 1, 2, 1};

}  // namespace fastopt
