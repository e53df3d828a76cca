// 8 x 8 matrices that the lanes of a SIMD group hold together, two elements a lane, placed as on Apple's
// GPUs.
#pragma once

namespace metal {

namespace emulated {
struct MatrixPlace {
  unsigned row, column;
  explicit MatrixPlace(unsigned lane)
      : row((lane / 4 & 4u) + lane / 2 % 4), column((lane / 4 & 2u) * 2 + lane % 2 * 2) {}
};
}  // namespace emulated

template <class T, int R = 8, int C = 8> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "only 8 x 8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    emulated::MatrixPlace place(emulated_lane->index);
    elements[0] = place.row == place.column ? diagonal : T(0);
    elements[1] = place.row == place.column + 1 ? diagonal : T(0);
  }
  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C> inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.elements = vec<T, 2>(value);
  return m;
}

namespace emulated {
struct MatrixElement {  // where the i-th element of this lane stands in memory
  size_t offset[2];
  MatrixElement(size_t stride, vec<ulong, 2> origin, bool transpose) {
    emulated::MatrixPlace place(emulated_lane->index);
    for (unsigned i = 0; i < 2; ++i) {
      size_t row = place.row, column = place.column + i;
      if (transpose) {
        size_t swap = row;
        row = column;
        column = swap;
      }
      offset[i] = (row + origin.y) * stride + column + origin.x;
    }
  }
};
}  // namespace emulated

template <class T> inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const T* source, ulong stride = 8,
                                              vec<ulong, 2> origin = vec<ulong, 2>(0),
                                              bool transpose = false) {
  emulated::MatrixElement element(stride, origin, transpose);
  for (int i = 0; i < 2; ++i) m.elements[i] = source[element.offset[i]];
}
template <class T> inline void simdgroup_store(simdgroup_matrix<T, 8, 8> m, T* target, ulong stride = 8,
                                               vec<ulong, 2> origin = vec<ulong, 2>(0),
                                               bool transpose = false) {
  emulated::MatrixElement element(stride, origin, transpose);
  for (int i = 0; i < 2; ++i) target[element.offset[i]] = m.elements[i];
}

// d = a b + c. Products and sums are float, rounded once to the type of d.
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c,
                                          METAL_HERE) {
  struct Both {
    vec<A, 2> a;
    vec<B, 2> b;
  } mine = {a.elements, b.elements};
  auto lanes = emulated::exchange(mine, EmulatedWait::simd_matrix, line);
  float left[8][8], right[8][8];
  for (unsigned lane = 0; lane < EMULATED_WIDTH; ++lane) {
    emulated::MatrixPlace place(lane);
    Both both = lanes[lane];
    for (unsigned i = 0; i < 2; ++i) {
      left[place.row][place.column + i] = static_cast<float>(both.a[i]);
      right[place.row][place.column + i] = static_cast<float>(both.b[i]);
    }
  }
  emulated::MatrixPlace place(lanes.self);
  for (unsigned i = 0; i < 2; ++i) {
    float sum = static_cast<float>(c.elements[i]);
    for (unsigned k = 0; k < 8; ++k) sum += left[place.row][k] * right[k][place.column + i];
    d.elements[i] = static_cast<D>(sum);
  }
}
template <class D, class A, class B> inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d,
                                                                    simdgroup_matrix<A, 8, 8> a,
                                                                    simdgroup_matrix<B, 8, 8> b, METAL_HERE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), line);
}

}  // namespace metal
