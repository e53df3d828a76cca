// Functions of the standard library. All are exact to libm's rounding: fast:: and precise:: are the same
// here.
#pragma once

#define INFINITY __builtin_inff()
#define HUGE_VALF __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX 3.40282347e+38f
#define MAXFLOAT FLT_MAX
#define FLT_MIN 1.17549435e-38f
#define FLT_EPSILON 1.1920929e-07f
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295u
#define M_PI_F 3.14159265358979323846f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_SQRT1_2_F 0.707106781186547524401f

namespace metal {

template <class T> using if_small = enable_if_t<is_small_v<T>>;
template <class T> using if_integral = enable_if_t<is_integral_v<T>>;

// One function of one argument: for float by libm, for half and bfloat by float and rounding, for vectors by
// element.
#define METAL_FUNCTION1(name, expression)                                                               \
  inline float name(float x) { return expression; }                                                     \
  template <class T, class = if_small<T>> inline T name(T a) { return T(name(static_cast<float>(a))); } \
  template <class T, int N> inline vec<T, N> name(vec<T, N> v) {                                        \
    for (int i = 0; i < N; ++i) v[i] = name(v[i]);                                                      \
    return v;                                                                                           \
  }
#define METAL_FUNCTION2(name, expression)                                     \
  inline float name(float x, float y) { return expression; }                  \
  template <class T, class = if_small<T>> inline T name(T a, T b) {           \
    return T(name(static_cast<float>(a), static_cast<float>(b)));             \
  }                                                                           \
  template <class T, int N> inline vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; ++i) a[i] = name(a[i], b[i]);                      \
    return a;                                                                 \
  }
#define METAL_TEST(name, expression)                                \
  inline bool name(float x) { return expression; }                  \
  template <class T, int N> inline vec<bool, N> name(vec<T, N> v) { \
    vec<bool, N> r;                                                 \
    for (int i = 0; i < N; ++i) r[i] = name(v[i]);                  \
    return r;                                                       \
  }

METAL_FUNCTION1(exp, __builtin_expf(x))
METAL_FUNCTION1(exp2, __builtin_exp2f(x))
METAL_FUNCTION1(exp10, __builtin_powf(10.0f, x))
METAL_FUNCTION1(log, __builtin_logf(x))
METAL_FUNCTION1(log2, __builtin_log2f(x))
METAL_FUNCTION1(log10, __builtin_log10f(x))
METAL_FUNCTION1(sqrt, __builtin_sqrtf(x))
METAL_FUNCTION1(rsqrt, 1.0f / __builtin_sqrtf(x))
METAL_FUNCTION1(sin, __builtin_sinf(x))
METAL_FUNCTION1(cos, __builtin_cosf(x))
METAL_FUNCTION1(tan, __builtin_tanf(x))
METAL_FUNCTION1(asin, __builtin_asinf(x))
METAL_FUNCTION1(acos, __builtin_acosf(x))
METAL_FUNCTION1(atan, __builtin_atanf(x))
METAL_FUNCTION1(sinh, __builtin_sinhf(x))
METAL_FUNCTION1(cosh, __builtin_coshf(x))
METAL_FUNCTION1(tanh, __builtin_tanhf(x))
METAL_FUNCTION1(floor, __builtin_floorf(x))
METAL_FUNCTION1(ceil, __builtin_ceilf(x))
METAL_FUNCTION1(trunc, __builtin_truncf(x))
METAL_FUNCTION1(round, __builtin_roundf(x))
METAL_FUNCTION1(rint, __builtin_rintf(x))
METAL_FUNCTION1(fabs, __builtin_fabsf(x))
METAL_FUNCTION1(fract, __builtin_fminf(x - __builtin_floorf(x), 0.99999994f))
METAL_FUNCTION1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f)
METAL_FUNCTION1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
METAL_FUNCTION2(pow, __builtin_powf(x, y))
METAL_FUNCTION2(powr, __builtin_powf(x, y))
METAL_FUNCTION2(atan2, __builtin_atan2f(x, y))
METAL_FUNCTION2(fmod, __builtin_fmodf(x, y))
METAL_FUNCTION2(fmax, __builtin_fmaxf(x, y))
METAL_FUNCTION2(fmin, __builtin_fminf(x, y))
METAL_FUNCTION2(copysign, __builtin_copysignf(x, y))
METAL_FUNCTION2(divide, x / y)
METAL_FUNCTION2(step, y < x ? 0.0f : 1.0f)
METAL_FUNCTION2(fdim, __builtin_fdimf(x, y))
METAL_TEST(isnan, __builtin_isnan(x))
METAL_TEST(isinf, __builtin_isinf(x) != 0)
METAL_TEST(isfinite, __builtin_isfinite(x))
METAL_TEST(signbit, __builtin_signbit(x) != 0)

#define METAL_MIN_MAX(name, op, function)                                                                  \
  METAL_FUNCTION2(name, function(x, y))                                                                    \
  template <class T, class U, class = if_integral<T>, class = if_integral<U>> inline auto name(T a, U b) { \
    static_assert(is_same_v<T, U>, "min and max of two integer types are ambiguous in Metal");             \
    return a op b ? a : b;                                                                                 \
  }
METAL_MIN_MAX(max, >, __builtin_fmaxf)
METAL_MIN_MAX(min, <, __builtin_fminf)

inline float abs(float x) { return __builtin_fabsf(x); }
template <class T, class = if_small<T>, class = void> inline T abs(T x) { return T(__builtin_fabsf(x)); }
template <class T, class = if_integral<T>> inline T abs(T x) { return x < T(0) ? T(-x) : x; }
template <class T, int N> inline vec<T, N> abs(vec<T, N> v) {
  for (int i = 0; i < N; ++i) v[i] = abs(v[i]);
  return v;
}
template <class T> inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
template <class T, class = if_small<T>> inline T fma(T a, T b, T c) { return T(__builtin_fmaf(a, b, c)); }
template <class T, int N> inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; ++i) a[i] = fma(a[i], b[i], c[i]);
  return a;
}
template <class T> inline T mad(T a, T b, T c) { return fma(a, b, c); }
template <class T> inline T mix(T a, T b, T t) { return a + (b - a) * t; }
template <class T, class = enable_if_t<is_scalar_v<T>>> inline T select(T a, T b, bool c) {
  return c ? b : a;
}
template <class T, int N> inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  for (int i = 0; i < N; ++i) a[i] = c[i] ? b[i] : a[i];
  return a;
}
inline float ldexp(float x, int n) { return __builtin_ldexpf(x, n); }

template <class T, class = if_integral<T>> inline T popcount(T x) {
  return T(__builtin_popcountll(static_cast<uint64_t>(x) & (~0ull >> (64 - 8 * sizeof(T)))));
}
template <class T, class = if_integral<T>> inline T clz(T x) {
  uint64_t bits = static_cast<uint64_t>(x) & (~0ull >> (64 - 8 * sizeof(T)));
  return T(bits ? __builtin_clzll(bits) - (64 - 8 * int(sizeof(T))) : 8 * int(sizeof(T)));
}
template <class T, class = if_integral<T>> inline T ctz(T x) {
  return T(x ? __builtin_ctzll(static_cast<uint64_t>(x)) : 8 * int(sizeof(T)));
}
inline uint mulhi(uint a, uint b) { return static_cast<uint>(static_cast<uint64_t>(a) * b >> 32); }
template <class T, class = if_integral<T>> inline T extract_bits(T x, uint offset, uint bits) {
  return bits == 0 ? T(0) : T(T(x << (8 * sizeof(T) - bits - offset)) >> (8 * sizeof(T) - bits));
}
template <class T, class = if_integral<T>> inline T rotate(T x, T n) {
  constexpr T width = 8 * sizeof(T);
  return (n %= width) ? T(x << n | x >> (width - n)) : x;
}

#define METAL_SAME(name) using metal::name;
#define METAL_VARIANTS \
  METAL_SAME(exp)      \
  METAL_SAME(exp2)     \
  METAL_SAME(exp10)    \
  METAL_SAME(log)      \
  METAL_SAME(log2)     \
  METAL_SAME(log10)    \
  METAL_SAME(sqrt)     \
  METAL_SAME(rsqrt)    \
  METAL_SAME(sin)      \
  METAL_SAME(cos)      \
  METAL_SAME(tan)      \
  METAL_SAME(sinh)     \
  METAL_SAME(cosh)     \
  METAL_SAME(tanh)     \
  METAL_SAME(pow)      \
  METAL_SAME(powr)     \
  METAL_SAME(atan2)    \
  METAL_SAME(divide)   \
  METAL_SAME(fmax)     \
  METAL_SAME(fmin)     \
  METAL_SAME(max)      \
  METAL_SAME(min)      \
  METAL_SAME(clamp)    \
  METAL_SAME(abs)      \
  METAL_SAME(fabs)     \
  METAL_SAME(floor)    \
  METAL_SAME(round)
namespace fast {
METAL_VARIANTS
}
namespace precise {
METAL_VARIANTS
}

}  // namespace metal
