// Scalar types: names of the integers, half and bfloat, which round after every operation.
#pragma once

typedef __INT8_TYPE__ int8_t;
typedef __INT16_TYPE__ int16_t;
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef uint8_t uchar;
typedef uint16_t ushort;
typedef uint32_t uint;
typedef uint64_t ulong;

namespace metal {

template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional {
  typedef T type;
};
template <class T, class F> struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <class T, class U> struct is_same {
  static constexpr bool value = false;
};
template <class T> struct is_same<T, T> {
  static constexpr bool value = true;
};
template <class T, class U> constexpr bool is_same_v = is_same<T, U>::value;
template <class T> constexpr bool is_integral_v = false;
#define METAL_INTEGRAL(T) template <> inline constexpr bool is_integral_v<T> = true;
METAL_INTEGRAL(bool)
METAL_INTEGRAL(char)
METAL_INTEGRAL(signed char)
METAL_INTEGRAL(unsigned char)
METAL_INTEGRAL(short)
METAL_INTEGRAL(unsigned short)
METAL_INTEGRAL(int)
METAL_INTEGRAL(unsigned int)
METAL_INTEGRAL(long)
METAL_INTEGRAL(unsigned long)
METAL_INTEGRAL(long long)
METAL_INTEGRAL(unsigned long long)

template <class To, class From> inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

struct half;
struct bfloat;
template <class T> constexpr bool is_small_v = is_same_v<T, half> || is_same_v<T, bfloat>;
template <class T> constexpr bool is_floating_v =
    is_same_v<T, float> || is_same_v<T, double> || is_small_v<T>;
template <class T> constexpr bool is_scalar_v = is_integral_v<T> || is_floating_v<T>;

struct half {  // IEEE binary16
  uint16_t bits;
  half() = default;
  template <class T, class = enable_if_t<is_integral_v<T> || is_same_v<T, float> || is_same_v<T, double>>>
  half(T value) : bits(round(static_cast<float>(value))) {}
  template <class T, class = enable_if_t<is_same_v<T, bfloat>>, class = void> explicit half(T value)
      : bits(round(static_cast<float>(value))) {}

  operator float() const {
    uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return as_type<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x400u) {  // zero or subnormal: a multiple of 2^-24
      float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
      return sign ? -value : value;
    }
    return as_type<float>(sign | ((magnitude << 13) + 0x38000000u));
  }

  static uint16_t round(float value) {  // to nearest, ties to even
    uint32_t all = as_type<uint32_t>(value), sign = all >> 16 & 0x8000u, magnitude = all & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude <
        0x38800000u) {  // below the smallest normal number: adding 0.5 rounds to a multiple of 2^-24
      float shifted = as_type<float>(magnitude) + 0.5f;
      return static_cast<uint16_t>(sign | (as_type<uint32_t>(shifted) - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
    return static_cast<uint16_t>(sign | rounded >> 13);
  }
};

struct bfloat {  // the upper half of a float. Conversions to it are explicit: write T(x)
  uint16_t bits;
  bfloat() = default;
  template <class T, class = enable_if_t<is_scalar_v<T> && !is_same_v<T, bfloat>>> explicit bfloat(T value)
      : bits(round(static_cast<float>(value))) {}
  operator float() const { return as_type<float>(static_cast<uint32_t>(bits) << 16); }

  static uint16_t round(float value) {
    uint32_t all = as_type<uint32_t>(value);
    if ((all & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(all >> 16 | 0x40u);
    return static_cast<uint16_t>((all + 0x7fffu + (all >> 16 & 1u)) >> 16);
  }
};

// half with half or an integer is half (bfloat likewise); with anything wider it is float.
template <class A, class B> struct small_result {
  typedef conditional_t<is_same_v<A, B> || is_integral_v<B>, A, conditional_t<is_integral_v<A>, B, float>>
      type;
};
template <class A, class B> using small_result_t =
    typename enable_if<(is_small_v<A> || is_small_v<B>) && is_scalar_v<A> && is_scalar_v<B>,
                       small_result<A, B>>::type::type;

#define METAL_SMALL_ARITHMETIC(op)                                                              \
  template <class A, class B, class R = small_result_t<A, B>> inline R operator op(A a, B b) {  \
    return R(static_cast<float>(R(a)) op static_cast<float>(R(b)));                             \
  }                                                                                             \
  template <class A, class B, class = small_result_t<A, B>, class = enable_if_t<is_small_v<A>>> \
  inline A& operator op## = (A & a, B b) {                                                      \
    return a = A(a op b);                                                                       \
  }
#define METAL_SMALL_COMPARISON(op)                                                                \
  template <class A, class B, class R = small_result_t<A, B>> inline bool operator op(A a, B b) { \
    return static_cast<float>(R(a)) op static_cast<float>(R(b));                                  \
  }
METAL_SMALL_ARITHMETIC(+)
METAL_SMALL_ARITHMETIC(-)
METAL_SMALL_ARITHMETIC(*)
METAL_SMALL_ARITHMETIC(/)
METAL_SMALL_COMPARISON(==)
METAL_SMALL_COMPARISON(!=)
METAL_SMALL_COMPARISON(<)
METAL_SMALL_COMPARISON(<=)
METAL_SMALL_COMPARISON(>)
METAL_SMALL_COMPARISON(>=)
template <class A, class = enable_if_t<is_small_v<A>>> inline A operator-(A a) {
  return A(-static_cast<float>(a));
}

template <class T> struct numeric_limits;
#define METAL_LIMITS(T, MIN, LOWEST, MAX, EPSILON, INF, NANV) \
  template <> struct numeric_limits<T> {                      \
    static T min() { return MIN; }                            \
    static T lowest() { return LOWEST; }                      \
    static T max() { return MAX; }                            \
    static T epsilon() { return EPSILON; }                    \
    static T infinity() { return INF; }                       \
    static T quiet_NaN() { return NANV; }                     \
  };
METAL_LIMITS(float, 1.17549435e-38f, -3.40282347e38f, 3.40282347e38f, 1.1920929e-7f, __builtin_inff(),
             __builtin_nanf(""))
METAL_LIMITS(half, half(6.103515625e-5f), half(-65504.0f), half(65504.0f), half(9.765625e-4f),
             half(__builtin_inff()), half(__builtin_nanf("")))
METAL_LIMITS(bfloat, bfloat(1.17549435e-38f), as_type<bfloat>(uint16_t(0xff7f)),
             as_type<bfloat>(uint16_t(0x7f7f)), bfloat(7.8125e-3f), bfloat(__builtin_inff()),
             bfloat(__builtin_nanf("")))
METAL_LIMITS(int, -2147483647 - 1, -2147483647 - 1, 2147483647, 0, 0, 0)
METAL_LIMITS(uint, 0, 0, 4294967295u, 0, 0, 0)
METAL_LIMITS(uchar, 0, 0, 255, 0, 0, 0)
METAL_LIMITS(ushort, 0, 0, 65535, 0, 0, 0)
METAL_LIMITS(short, -32768, -32768, 32767, 0, 0, 0)

namespace emulated {
// A pointer into the constant address space: it reads, and does not convert to a device pointer.
template <class T> struct Constant {
  const T* data;
  template <class I> const T& operator[](I i) const { return data[i]; }
  const T& operator*() const { return *data; }
  const T* operator->() const { return data; }
  template <class I> Constant operator+(I i) const { return Constant{data + i}; }
};
}  // namespace emulated

}  // namespace metal

typedef metal::half half;
typedef metal::bfloat bfloat;
typedef metal::half float16_t;
typedef metal::bfloat bfloat16_t;
