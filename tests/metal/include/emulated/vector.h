// Vectors of 2, 3 and 4 elements.
#pragma once

namespace metal {

template <class T, int N> struct vec;

#define METAL_VECTOR_COMMON(N)                                                             \
  vec() = default;                                                                         \
  vec(T value) {                                                                           \
    for (int i = 0; i < N; ++i) data[i] = value;                                           \
  }                                                                                        \
  template <class U, class = enable_if_t<is_scalar_v<U> && !is_same_v<U, T>>> vec(U value) \
      : vec(static_cast<T>(value)) {}                                                      \
  template <class U, class = enable_if_t<!is_same_v<U, T>>, class = void>                  \
  explicit vec(const vec<U, N>& other) {                                                   \
    for (int i = 0; i < N; ++i) data[i] = static_cast<T>(other[i]);                        \
  }                                                                                        \
  T& operator[](unsigned i) { return data[i]; }                                            \
  const T& operator[](unsigned i) const { return data[i]; }

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T data[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
  };
  METAL_VECTOR_COMMON(2)
  template <class A, class B> vec(A a, B b) { x = static_cast<T>(a), y = static_cast<T>(b); }
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T data[3];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    struct {
      vec<T, 2> xy;
    };
  };
  METAL_VECTOR_COMMON(3)
  template <class A, class B, class C> vec(A a, B b, C c) {
    x = static_cast<T>(a), y = static_cast<T>(b), z = static_cast<T>(c);
  }
  template <class C> vec(vec<T, 2> ab, C c) : vec(ab.x, ab.y, c) {}
  template <class A> vec(A a, vec<T, 2> bc) : vec(a, bc.x, bc.y) {}
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T data[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    struct {
      vec<T, 2> xy, zw;
    };
  };
  METAL_VECTOR_COMMON(4)
  template <class A, class B, class C, class D> vec(A a, B b, C c, D d) {
    x = static_cast<T>(a), y = static_cast<T>(b), z = static_cast<T>(c), w = static_cast<T>(d);
  }
  vec(vec<T, 2> ab, vec<T, 2> cd) : vec(ab.x, ab.y, cd.x, cd.y) {}
  template <class C, class D> vec(vec<T, 2> ab, C c, D d) : vec(ab.x, ab.y, c, d) {}
  template <class A, class D> vec(A a, vec<T, 2> bc, D d) : vec(a, bc.x, bc.y, d) {}
  template <class A, class B> vec(A a, B b, vec<T, 2> cd) : vec(a, b, cd.x, cd.y) {}
  template <class D> vec(vec<T, 3> abc, D d) : vec(abc.x, abc.y, abc.z, d) {}
  template <class A> vec(A a, vec<T, 3> bcd) : vec(a, bcd.x, bcd.y, bcd.z) {}
};

template <class S> using if_scalar = enable_if_t<is_scalar_v<S>>;

#define METAL_VECTOR_BINARY(op, R)                                                                          \
  template <class T, int N> inline vec<R, N> operator op(vec<T, N> a, vec<T, N> b) {                        \
    vec<R, N> c;                                                                                            \
    for (int i = 0; i < N; ++i) c[i] = static_cast<R>(a[i] op b[i]);                                        \
    return c;                                                                                               \
  }                                                                                                         \
  template <class T, int N, class S, class = if_scalar<S>> inline vec<R, N> operator op(vec<T, N> a, S b) { \
    return a op vec<T, N>(static_cast<T>(b));                                                               \
  }                                                                                                         \
  template <class T, int N, class S, class = if_scalar<S>> inline vec<R, N> operator op(S a, vec<T, N> b) { \
    return vec<T, N>(static_cast<T>(a)) op b;                                                               \
  }
#define METAL_VECTOR_ARITHMETIC(op)                                                           \
  METAL_VECTOR_BINARY(op, T)                                                                  \
  template <class T, int N, class B> inline vec<T, N>& operator op## = (vec<T, N> & a, B b) { \
    return a = a op b;                                                                        \
  }

METAL_VECTOR_ARITHMETIC(+)
METAL_VECTOR_ARITHMETIC(-)
METAL_VECTOR_ARITHMETIC(*)
METAL_VECTOR_ARITHMETIC(/)
METAL_VECTOR_ARITHMETIC(%)
METAL_VECTOR_ARITHMETIC(&)
METAL_VECTOR_ARITHMETIC(|)
METAL_VECTOR_ARITHMETIC(^)
METAL_VECTOR_ARITHMETIC(<<)
METAL_VECTOR_ARITHMETIC(>>)
METAL_VECTOR_BINARY(==, bool)
METAL_VECTOR_BINARY(!=, bool)
METAL_VECTOR_BINARY(<, bool)
METAL_VECTOR_BINARY(<=, bool)
METAL_VECTOR_BINARY(>, bool)
METAL_VECTOR_BINARY(>=, bool)
METAL_VECTOR_BINARY(&&, bool)
METAL_VECTOR_BINARY(||, bool)

#define METAL_VECTOR_UNARY(op, R)                                       \
  template <class T, int N> inline vec<R, N> operator op(vec<T, N> a) { \
    vec<R, N> c;                                                        \
    for (int i = 0; i < N; ++i) c[i] = static_cast<R>(op a[i]);         \
    return c;                                                           \
  }
METAL_VECTOR_UNARY(-, T)
METAL_VECTOR_UNARY(~, T)
METAL_VECTOR_UNARY(!, bool)

template <class T, int N> inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; ++i) sum += a[i] * b[i];
  return sum;
}
template <int N> inline bool all(vec<bool, N> a) {
  for (int i = 0; i < N; ++i)
    if (!a[i]) return false;
  return true;
}
template <int N> inline bool any(vec<bool, N> a) { return !all(!a); }
inline bool all(bool a) { return a; }
inline bool any(bool a) { return a; }

#define METAL_VECTOR_NAMES(T, name) \
  typedef vec<T, 2> name##2;        \
  typedef vec<T, 3> name##3;        \
  typedef vec<T, 4> name##4;
METAL_VECTOR_NAMES(bool, bool)
METAL_VECTOR_NAMES(float, float)
METAL_VECTOR_NAMES(half, half)
METAL_VECTOR_NAMES(bfloat, bfloat)
METAL_VECTOR_NAMES(int8_t, char)
METAL_VECTOR_NAMES(uchar, uchar)
METAL_VECTOR_NAMES(int16_t, short)
METAL_VECTOR_NAMES(ushort, ushort)
METAL_VECTOR_NAMES(int, int)
METAL_VECTOR_NAMES(uint, uint)
METAL_VECTOR_NAMES(int64_t, long)
METAL_VECTOR_NAMES(ulong, ulong)

}  // namespace metal
