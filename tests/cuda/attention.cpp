// Compares the attention kernels to attention in f64 of the operands, which all types hold, over packed sequences, windows, caches
// and capped scores, on shapes that fit the tiles badly.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu, and the macro of its entry point:
// ATTENTION_FORWARD, ATTENTION_D_QUERIES or ATTENTION_D_KEYS, or, with -DGROUPS, one of these by groups of warps; -DF32 for those in f32.
#include "warpgroup.h"

#include KERNEL
#include "random.h"

#if defined ATTENTION_FORWARD_GROUPS
#define ATTENTION_FORWARD
#elif defined ATTENTION_D_QUERIES_GROUPS
#define ATTENTION_D_QUERIES
#elif defined ATTENTION_D_KEYS_GROUPS
#define ATTENTION_D_KEYS
#endif

// Relative to the sum of the absolute values of all that is summed up. On tensor cores weights and the scores' gradients are rounded to
// bf16 before they are multiplied, which makes them wrong by 2^-8 at most; logarithms of sums are f32 throughout.
#ifdef F32
typedef float Operand;
constexpr double TOLERANCE = 2e-6, OF_LOGARITHMS = 1e-6;
#else
typedef bf16 Operand;
constexpr double TOLERANCE = 1.01 / 256, OF_LOGARITHMS = 1e-5;
#endif
// Blocks that each write a part of a head.
#if defined ATTENTION_D_KEYS && !defined GROUPS && !defined F32
constexpr u32 SHARED_BY = PARTS;
#else
constexpr u32 SHARED_BY = 1;
#endif

struct Case {
    std::vector<u32> lengths;
    // Tokens of each sequence before its first query.
    u32 cached, heads, kv_heads, window;
    float softcap = CAPPED ? 1.5f : 0;
};

typedef std::vector<double> Numbers;

// Random numbers that bf16 holds, and the same in f64.
static std::vector<Operand> operand(size_t count, Numbers& values) {
    std::vector<Operand> operands(count);
    values.resize(count);
    for (size_t i = 0; i < count; i++) {
        const float value = device::from_bf16(device::to_bf16(uniform()));
        device::set(operands[i], value);
        values[i] = value;
    }
    return operands;
}

struct Expected { Numbers y, lse, delta, d_q, d_k, d_v, y_size, d_q_size, d_k_size, d_v_size; };

static Expected formulas(const Case& c, const Numbers& q, const Numbers& k, const Numbers& v, const Numbers& grad,
                         const std::vector<uint2>& bounds, float scale) {
    const size_t d = HEAD_DIM, tokens = bounds.size();
    Expected e;
    for (Numbers* n : { &e.y, &e.d_q, &e.y_size, &e.d_q_size }) n->resize(q.size());
    for (Numbers* n : { &e.d_k, &e.d_v, &e.d_k_size, &e.d_v_size }) n->resize(k.size());
    e.lse.resize(tokens * c.heads), e.delta.resize(tokens * c.heads);
    for (size_t t = 0; t < tokens; t++)
        for (u32 head = 0; head < c.heads; head++) {
            const size_t row = (t * c.heads + head) * d, group = c.heads / c.kv_heads;
            const auto key_row = [&](u32 key) { return (key * c.kv_heads + head / group) * d; };
            Numbers weights, slopes;
            double sum = 0;
            for (u32 key = bounds[t].x; key <= bounds[t].y; key++) {
                double score = 0;
                for (size_t i = 0; i < d; i++) score += q[row + i] * k[key_row(key) + i];
                score *= scale;
                double slope = 1;
                if (c.softcap) {
                    const double ratio = std::tanh(score / c.softcap);
                    score = ratio * c.softcap, slope = 1 - ratio * ratio;
                }
                weights.push_back(std::exp(score));
                slopes.push_back(slope);
                sum += weights.back();
            }
            double delta = 0;
            for (size_t i = 0; i < d; i++) {
                for (u32 key = bounds[t].x; key <= bounds[t].y; key++) {
                    const double part = weights[key - bounds[t].x] / sum * v[key_row(key) + i];
                    e.y[row + i] += part, e.y_size[row + i] += std::fabs(part);
                }
                delta += e.y[row + i] * grad[row + i];
            }
            e.lse[t * c.heads + head] = std::log(sum);
            e.delta[t * c.heads + head] = delta;
            for (u32 key = bounds[t].x; key <= bounds[t].y; key++) {
                const double weight = weights[key - bounds[t].x] / sum;
                double d_weight = 0, terms = 0;
                for (size_t i = 0; i < d; i++) {
                    const double term = grad[row + i] * v[key_row(key) + i];
                    d_weight += term, terms += std::fabs(term);
                }
                const double d_score = weight * (d_weight - delta) * slopes[key - bounds[t].x] * scale;
                // Of a difference that may vanish, and in f32 of a sum that may.
                const double of_weight = std::is_same<Operand, float>::value ? terms : std::fabs(d_weight);
                const double size = weight * (of_weight + std::fabs(delta)) * slopes[key - bounds[t].x] * scale;
                for (size_t i = 0; i < d; i++) {
                    const size_t at = key_row(key) + i;
                    e.d_v[at] += weight * grad[row + i], e.d_v_size[at] += std::fabs(weight * grad[row + i]);
                    e.d_q[row + i] += d_score * k[at], e.d_q_size[row + i] += std::fabs(size * k[at]);
                    e.d_k[at] += d_score * q[row + i], e.d_k_size[at] += std::fabs(size * q[row + i]);
                }
            }
        }
    return e;
}

static double worst = 0;

// What is got may be in parts, one after the other, that are to be added up.
template <class Part>
static void compare(const char* name, const device::Buffer<Part>& parts, const Numbers& expected, const Numbers& size,
                    double tolerance = TOLERANCE) {
    parts.check_surroundings(name);
    for (size_t i = 0; i < expected.size(); i++) {
        double got = 0, allowed = 0;
        for (size_t at = i; at < parts.length; at += expected.size()) {
            const double part = device::value(parts.data[at]);
            got += part, allowed += device::rounding(parts.data[at]) * std::fabs(part);
        }
        const double error = std::max(std::fabs(got - expected[i]) - allowed, 0.0) / (size[i] + 1e-30);
        // A key that no one sees has a gradient of zero.
        if (size[i] == 0 && got == 0) continue;
        // Not the other way round: NaN must fail.
        if (!(error <= tolerance)) device::fail("%s[%zu] is %g, not %g", name, i, got, expected[i]);
        worst = std::max(worst, error);
    }
}

static void run(const Case& c, u32 splits) {
    std::vector<uint2> bounds;
    u32 keys = 0;
    for (u32 length : c.lengths) {
        for (u32 i = 0; i < length; i++) {
            const u32 seen = c.cached + i + 1, hidden = c.window && seen > c.window ? seen - c.window : 0;
            bounds.push_back({ keys + hidden, keys + seen - 1 });
        }
        keys += c.cached + length;
    }
    const u32 tokens = (u32)bounds.size();
    const float scale = 1.5f / std::sqrt((float)HEAD_DIM);
    Numbers q, k, v, grad;
    const device::Buffer<Operand> q_buffer(operand(tokens * c.heads * HEAD_DIM, q));
    const device::Buffer<Operand> k_buffer(operand(keys * c.kv_heads * HEAD_DIM, k));
    const device::Buffer<Operand> v_buffer(operand(keys * c.kv_heads * HEAD_DIM, v));
    const device::Buffer<Operand> grad_buffer(operand(tokens * c.heads * HEAD_DIM, grad));
    const device::Buffer<uint2> bounds_buffer(bounds);
    const Expected e = formulas(c, q, k, v, grad, bounds, scale);
    std::vector<float> known(e.lse.begin(), e.lse.end());
    known.insert(known.end(), e.delta.begin(), e.delta.end());
    const device::Buffer<float> known_buffer(known);
    device::Buffer<Result> first(q.size()), second(splits * k.size()), third(splits * k.size());
    device::Buffer<float> lse(e.lse.size());
#ifdef ATTENTION_D_KEYS
    const u32 across = splits * c.kv_heads * SHARED_BY, blocks = (keys + ROWS - 1) / ROWS;
#else
    const u32 across = c.heads, blocks = (tokens + ROWS - 1) / ROWS;
#endif
#ifdef GROUPS
    const auto map = [](const device::Buffer<bf16>& x, u32 rows, u32 heads, u32 box) {
        return device::tile_map<TileMap>({ x.data, rows, heads * HEAD_DIM, heads * HEAD_DIM, box, 64 });
    };
#ifdef ATTENTION_D_KEYS
    constexpr u32 OF_QUERIES = COLUMNS, OF_KEYS = ROWS;
#else
    constexpr u32 OF_QUERIES = ROWS, OF_KEYS = COLUMNS;
#endif
    const TileMap q_map = map(q_buffer, tokens, c.heads, OF_QUERIES), k_map = map(k_buffer, keys, c.kv_heads, OF_KEYS);
    const TileMap v_map = map(v_buffer, keys, c.kv_heads, OF_KEYS), grad_map = map(grad_buffer, tokens, c.heads, OF_QUERIES);
#endif
    // As several dispatches of a long attention.
    for (u32 block = 0; block < blocks; block += 2) {
        const Info info = { tokens, keys, c.heads, c.kv_heads, scale, c.softcap, block, splits };
        device::launch(across, std::min(2u, blocks - block), THREADS, [&] {
#if defined ATTENTION_FORWARD_GROUPS
            attention_forward_groups(q_map, k_map, v_map, q_buffer.data, k_buffer.data, v_buffer.data, bounds_buffer.data,
                                     first.data, lse.data, info);
#elif defined ATTENTION_D_QUERIES_GROUPS
            attention_d_queries_groups(q_map, k_map, v_map, grad_map, q_buffer.data, k_buffer.data, v_buffer.data,
                                       grad_buffer.data, known_buffer.data, bounds_buffer.data, first.data, info);
#elif defined ATTENTION_D_KEYS_GROUPS
            attention_d_keys_groups(q_map, k_map, v_map, grad_map, q_buffer.data, k_buffer.data, v_buffer.data,
                                    grad_buffer.data, known_buffer.data, bounds_buffer.data, second.data, third.data, info);
#elif defined ATTENTION_FORWARD
            attention_forward(q_buffer.data, k_buffer.data, v_buffer.data, bounds_buffer.data, first.data, lse.data, info);
#elif defined ATTENTION_D_QUERIES
            attention_d_queries(q_buffer.data, k_buffer.data, v_buffer.data, grad_buffer.data, known_buffer.data,
                                bounds_buffer.data, first.data, info);
#else
            attention_d_keys(q_buffer.data, k_buffer.data, v_buffer.data, grad_buffer.data, known_buffer.data,
                             bounds_buffer.data, second.data, third.data, info);
#endif
        });
    }
#if defined ATTENTION_FORWARD
    compare("y", first, e.y, e.y_size);
    compare("lse", lse, e.lse, Numbers(e.lse.size(), 1), OF_LOGARITHMS);
#elif defined ATTENTION_D_QUERIES
    compare("d_q", first, e.d_q, e.d_q_size);
#else
    compare("d_k", second, e.d_k, e.d_k_size);
    compare("d_v", third, e.d_v, e.d_v_size);
#endif
}

int main() {
    const std::vector<Case> cases = {
        { { 1 }, 0, 1, 1, 0 },   { { 130 }, 0, 2, 1, 0 },      { { 64 }, 0, 1, 1, 0 },  { { 3, 70, 1, 33 }, 0, 4, 2, 0 },
        { { 100 }, 0, 3, 1, 17 }, { { 65 }, 0, 2, 2, 0 },       { { 9 }, 77, 2, 1, 0 }, { { 40, 90 }, 0, 6, 2, 33 },
        { { 1 }, 64, 2, 1, 1 },  { { 90 }, 50, 1, 1, 20 },     { { 300 }, 0, 2, 1, 0 },  { { 40, 290 }, 0, 2, 1, 150 },
    };
    for (const Case& c : cases) {
        char name[160];
        snprintf(name, sizeof name, "%zu sequences, the first of %u, after %u, %u heads over %u, window %u, cap %g",
                 c.lengths.size(), c.lengths[0], c.cached, c.heads, c.kv_heads, c.window, c.softcap);
        device::test_case = name;
        run(c, 1);
#ifdef ATTENTION_D_KEYS
        const u32 shared_by = c.heads / c.kv_heads;
        if (shared_by > 1) run(c, shared_by);
#endif
    }
    printf("%zu attentions, the largest error %.1e of the sum of absolute values\n", cases.size(), worst);
}
