// A number of 16 bits, in one of two formats, computed with in f32 and rounded after each operation.
#pragma once

#include <cmath>
#include <type_traits>

template <class Format>
struct Sixteen {
    unsigned short bits;

    Sixteen() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    Sixteen(T value) : bits(Format::bits((float)value)) {}
    template <class Other>
    Sixteen(Sixteen<Other> other) : bits(Format::bits((float)other)) {}
    operator float() const { return Format::value(bits); }

    Sixteen& operator+=(Sixteen other) { return *this = *this + other; }
    Sixteen& operator-=(Sixteen other) { return *this = *this - other; }
    Sixteen& operator*=(Sixteen other) { return *this = *this * other; }
    friend Sixteen operator+(Sixteen a, Sixteen b) { return Sixteen((float)a + (float)b); }
    friend Sixteen operator-(Sixteen a, Sixteen b) { return Sixteen((float)a - (float)b); }
    friend Sixteen operator*(Sixteen a, Sixteen b) { return Sixteen((float)a * (float)b); }
    friend Sixteen operator/(Sixteen a, Sixteen b) { return Sixteen((float)a / (float)b); }
    friend Sixteen operator-(Sixteen a) { return Sixteen(-(float)a); }
    friend Sixteen __hmax(Sixteen a, Sixteen b) { return Sixteen(fmaxf(a, b)); }
    friend Sixteen __hmin(Sixteen a, Sixteen b) { return Sixteen(fminf(a, b)); }
    friend Sixteen __habs(Sixteen a) { return Sixteen(fabsf(a)); }
    friend bool __hisnan(Sixteen a) { return std::isnan((float)a); }
    friend Sixteen hexp(Sixteen a) { return Sixteen(expf(a)); }
    friend Sixteen hlog(Sixteen a) { return Sixteen(logf(a)); }
    friend Sixteen hsqrt(Sixteen a) { return Sixteen(sqrtf(a)); }
    friend Sixteen hrsqrt(Sixteen a) { return Sixteen(1 / sqrtf(a)); }
    friend Sixteen hrcp(Sixteen a) { return Sixteen(1 / (float)a); }
};

template <class T>
struct alignas(4) Pair {
    T x, y;
    friend Pair operator+(Pair a, Pair b) { return { a.x + b.x, a.y + b.y }; }
    friend Pair operator-(Pair a, Pair b) { return { a.x - b.x, a.y - b.y }; }
    friend Pair operator*(Pair a, Pair b) { return { a.x * b.x, a.y * b.y }; }
    friend Pair operator/(Pair a, Pair b) { return { a.x / b.x, a.y / b.y }; }
    friend Pair __hmax2(Pair a, Pair b) { return { __hmax(a.x, b.x), __hmax(a.y, b.y) }; }
    friend Pair __hmin2(Pair a, Pair b) { return { __hmin(a.x, b.x), __hmin(a.y, b.y) }; }
    friend Pair __habs2(Pair a) { return { __habs(a.x), __habs(a.y) }; }
    friend Pair h2exp(Pair a) { return { hexp(a.x), hexp(a.y) }; }
    friend Pair h2log(Pair a) { return { hlog(a.x), hlog(a.y) }; }
    friend Pair h2sqrt(Pair a) { return { hsqrt(a.x), hsqrt(a.y) }; }
    friend Pair h2rsqrt(Pair a) { return { hrsqrt(a.x), hrsqrt(a.y) }; }
    friend Pair h2rcp(Pair a) { return { hrcp(a.x), hrcp(a.y) }; }
};
