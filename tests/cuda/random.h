// Random numbers, the same in every run.
#pragma once

#include <random>

static std::mt19937 noise(7);

// From -1 to 1.
static float uniform() { return (float)(noise() >> 8) / (1 << 23) - 1; }
