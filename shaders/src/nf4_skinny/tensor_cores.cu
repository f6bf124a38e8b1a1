// y[rows, out] = x[rows, in] · Wᵀ for a handful of rows on tensor cores, with x in bf16 and the 16 levels rounded to it; scales, sums
// and y are f32. With a BRANCH beside the weight, y = x · Wᵀ + scaling · low[rows, rank] · Bᵀ, B[out, rank]. `in` is a multiple of SPAN,
// and x begins at a multiple of 16 bytes.
//
// Grid: as many blocks in x as run at a time; each takes groups of FEATURES output features in turn, its warps divide the inner dimension
// between them. What a block needs before it can begin takes as long as a group does. What keeps memory busy is how many bytes are asked for
// and have not come: more than registers hold, so that codes and scales come to shared memory, each warp's to a ring of its own.
// Of what a code costs beside its load, its level is the most. Here a byte, two codes, is one read of shared memory, where each lane has
// a copy of the 256 pairs in a bank of its own; with a shuffle for each code, levels would take as long as the codes themselves.

constexpr u32 THREADS = {{ threads }}, WARPS = THREADS / 32;
// Rows that there are accumulators for: so many times eight; info.rows is at most that.
constexpr u32 EIGHTS = {{ eights }}, ROWS = 8 * EIGHTS;
constexpr u32 FEATURES = 16;
// Inner elements that a warp takes at a time, in chunks whose products share a scale.
constexpr u32 SPAN = 256, CHUNK = 64, CHUNKS = SPAN / CHUNK;
// A line of shared memory for every pair.
constexpr u32 COPIES = 32, PAIRS = 256 * COPIES;
// Spans of a warp that are in shared memory or on their way there.
constexpr u32 STAGES = {{ stages }};

#define BRANCH {{ branch }}

// How a weight's scales lie: double-quantized in blocks of CHUNK, so that a word has those of a span; whole chunks to a block, or more
// of them; two blocks to a chunk.
enum class Scales { Words, Whole, Halves };

// A group of output features, and a span of the inner dimension.
struct Place { u32 group, span; };

// A warp's next place after this one.
__device__ __forceinline__ Place after(const Info& info, Place at) {
    if (at.span + WARPS < info.in / SPAN) return { at.group, at.span + WARPS };
    return { at.group + gridDim.x, threadIdx.x / 32 };
}

// Where the codes of a feature of a group begin in a span; past the end it is the last feature there is, which is not stored there.
__device__ __forceinline__ u32 first_of(const Info& info, Place at, u32 feature) {
    return min(at.group * FEATURES + feature, info.out - 1) * info.in + at.span * SPAN;
}

// A stage of a ring: the codes of a span of each feature, a line of 16-byte chunks, and a word each of scales. Of four neighbouring lines
// the chunks are permuted, so that lanes that read the same of each find it in different banks.
constexpr u32 LINE = SPAN / 2, SCALES_AT = FEATURES * LINE, STAGE = SCALES_AT + FEATURES * 4;
__device__ __forceinline__ u32 chunk_at(u32 feature, u32 chunk) { return feature * LINE + (chunk ^ feature % 4 * 2) * 16; }

// Whether there is such a span; if not, nothing follows it.
__device__ __forceinline__ bool exists(const Info& info, Place at) {
    return at.group * FEATURES < info.out && at.span < info.in / SPAN;
}

// Starts the copies of a span's codes to a stage.
__device__ __forceinline__ void start_codes(char* stage, const u32* codes, const Info& info, Place at) {
    const u32 lane = threadIdx.x % 32;
    if (!exists(info, at)) return;
#pragma unroll
    for (u32 i = 0; i < FEATURES * LINE / 16; i += 32) {
        const u32 feature = (i + lane) / (LINE / 16), chunk = lane % (LINE / 16);
        copy_async(stage + chunk_at(feature, chunk), codes + first_of(info, at, feature) / 8 + chunk * 4, true);
    }
}

// The same of its scales, if they are a word of each feature.
template <Scales SCALES>
__device__ __forceinline__ void start_scales(char* stage, const Weight& w, const Info& info, Place at) {
    const u32 lane = threadIdx.x % 32;
    if (SCALES != Scales::Words || lane >= FEATURES || !exists(info, at)) return;
    copy_word_async(stage + SCALES_AT + lane * 4, w.absmax + first_of(info, at, lane) / SPAN, true);
}

// Which of a group's features is a lane's first or second one.
__device__ __forceinline__ u32 feature_of(u32 which) { return which * 8 + threadIdx.x % 32 / 4; }

// What the lane's 16 codes of a chunk are multiplied by.
template <Scales SCALES>
__device__ __forceinline__ float scale_of(const char* stage, const Weight& w, const Info& info, Place at, u32 chunk, u32 which) {
    const u32 first = first_of(info, at, feature_of(which));
    if (SCALES != Scales::Words) return finish_scale(w, fetch_scale(w, first + chunk * CHUNK + threadIdx.x % 4 * 16));
    const u32 word = *(const u32*)(stage + SCALES_AT + feature_of(which) * 4);
    return finish_scale(w, { word >> 8 * chunk & 255, __uint_as_float(w.header[NESTED + first / CHUNK / 256]) });
}

// What a lane takes of a chunk of x, of one row of each eight: 16 neighbours. So the inner dimension is summed up in an order in which a
// lane's neighbours in memory are what a product takes from it.
struct Activations { uint4 of[EIGHTS][2]; };

__device__ __forceinline__ void load_x(Activations& to, const bf16* x, const Info& info, u32 span, u32 chunk) {
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) {
        const u32 row = eight * 8 + threadIdx.x % 32 / 4;
        if (row >= info.rows) continue;
        const uint4* from = (const uint4*)(x + row * info.in + span * SPAN + chunk * CHUNK) + threadIdx.x % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < 2; i++) to.of[eight][i] = from[i];
    }
}

__device__ __forceinline__ u32 scaled_pair(u32 pair, float scale) {
    return pack_bf16(__uint_as_float(pair << 16) * scale, __uint_as_float(pair & 0xffff0000) * scale);
}

// Adds a span's products to the sums: lane l has those of its two features with the rows 2 (l % 4) and the next of each eight.
// `ahead` has the first chunk of x, and then that of the span after it; `pairs` is where the lane's copy of them lies.
template <Scales SCALES>
__device__ __forceinline__ void multiply(const char* stage, Activations& ahead, const bf16* x, const Weight& w,
                                         const Info& info, u32 pairs, Place at, u32 span_after,
                                         float (&sum)[EIGHTS][4]) {
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
        float part[EIGHTS][4] = {}, scale[2];
#pragma unroll
        for (u32 which = 0; which < 2; which++)
            scale[which] = scale_of<SCALES>(stage, w, info, at, chunk, which);
        // Of two features, FEATURES / 2 apart, 16 codes.
        uint2 codes[2];
#pragma unroll
        for (u32 which = 0; which < 2; which++) {
            const u32 place = chunk_at(feature_of(which), chunk * 2 + threadIdx.x % 4 / 2) + threadIdx.x % 2 * 8;
            codes[which] = *(const uint2*)(stage + place);
        }
        const Activations now = ahead;
        if (chunk + 1 < CHUNKS) load_x(ahead, x, info, at.span, chunk + 1);
        else load_x(ahead, x, info, span_after, 0);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 a[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                // Two codes of the first feature, of the second one, and then two more of each.
                const u32 word = i / 2 ? codes[j % 2].y : codes[j % 2].x;
                const u32 byte = __byte_perm(word, 0, 0x4440 + i % 2 * 2 + j / 2);
                a[j] = load_word(pairs, byte);
                if (SCALES == Scales::Halves) a[j] = scaled_pair(a[j], scale[j % 2]);
            }
#pragma unroll
            for (u32 eight = 0; eight < EIGHTS; eight++) {
                const uint4 b = now.of[eight][i / 2];
                multiply_add(part[eight], a, i % 2 ? b.z : b.x, i % 2 ? b.w : b.y);
            }
        }
#pragma unroll
        for (u32 eight = 0; eight < EIGHTS; eight++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (SCALES == Scales::Halves) sum[eight][i] += part[eight][i];
                else sum[eight][i] += scale[i / 2] * part[eight][i];
            }
    }
}

// Each lane's copy of the two levels of every byte, the first code's in the low half.
__device__ __forceinline__ void spread_pairs(u32* pairs) {
    const float level = NF4[threadIdx.x % 16];
#pragma unroll 4
    for (u32 i = 4 * threadIdx.x; i < PAIRS; i += 4 * THREADS) {
        const u32 byte = i / COPIES;
        // In memory order the first element of a byte is the high nibble.
        const float first = __shfl_sync(0xffffffff, level, byte / 16), second = __shfl_sync(0xffffffff, level, byte % 16);
        const u32 pair = pack_bf16(first, second);
        *(uint4*)(pairs + i) = make_uint4(pair, pair, pair, pair);
    }
}

// Adds up what the warps have of a group, and the branch's part of it where there is one.
__device__ __forceinline__ void store(float* y, float* sums, const float (&sum)[EIGHTS][4], const float* low,
                                      const float* b, const BranchInfo& info, u32 group) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 row = eight * 8 + lane % 4 * 2 + i % 2, feature = i / 2 * 8 + lane / 4;
            sums[(warp * ROWS + row) * FEATURES + feature] = sum[eight][i];
        }
    __syncthreads();
    for (u32 i = threadIdx.x; i < ROWS * FEATURES; i += THREADS) {
        const u32 row = i / FEATURES, feature = group * FEATURES + i % FEATURES;
        if (row >= info.rows || feature >= info.out) continue;
        float total = 0;
#if BRANCH
#pragma unroll 8
        for (u32 k = 0; k < info.rank; k++)
            total += low[(size_t)row * info.rank + k] * b[(size_t)feature * info.rank + k];
        total *= info.scaling;
#endif
        for (u32 part = 0; part < WARPS; part++) total += sums[part * ROWS * FEATURES + i];
        y[(size_t)row * info.out + feature] = total;
    }
    // The next group's sums take this place.
    __syncthreads();
}

// Starts the copies of the codes of a warp's first spans, as many as come before the first one is taken.
__device__ __forceinline__ void start_first(char* ring, const u32* codes, const Info& info) {
    Place at = { blockIdx.x, threadIdx.x / 32 };
    for (u32 i = 0; i < STAGES - 1; i++, at = after(info, at)) start_codes(ring + i * STAGE, codes, info, at);
}

// All groups of the block; codes of the first spans and the first activations are on their way.
template <Scales SCALES>
__device__ __forceinline__ void run(char* ring, Activations& ahead, const bf16* x, const Weight& w, float* y, float* sums,
                                    const float* low, const float* b, const BranchInfo& info, u32 pairs) {
    const u32 warp = threadIdx.x / 32, spans = info.in / SPAN, groups = (info.out + FEATURES - 1) / FEATURES;
    Place next = { blockIdx.x, warp };
    // One group of copies for all of the first spans. There is one for each span, an empty one where there is no span: waits count groups.
    for (u32 i = 0; i < STAGES - 1; i++, next = after(info, next)) start_scales<SCALES>(ring + i * STAGE, w, info, next);
    for (u32 i = 0; i < STAGES - 1; i++) commit_copies();
    u32 now = 0;
    for (u32 group = blockIdx.x; group < groups; group += gridDim.x) {
        float sum[EIGHTS][4] = {};
        for (u32 span = warp; span < spans; span += WARPS) {
            const Place at = { group, span };
            await_copies_but<STAGES - 2>();
            // What every lane has copied is there for all of them; and the stage that is taken next, all have read.
            __syncwarp();
            char* const taken = ring + (now + STAGES - 1) % STAGES * STAGE;
            start_codes(taken, w.codes, info, next);
            start_scales<SCALES>(taken, w, info, next);
            commit_copies();
            next = after(info, next);
            multiply<SCALES>(ring + now * STAGE, ahead, x, w, info, pairs, at, after(info, at).span, sum);
            now = now + 1 < STAGES ? now + 1 : 0;
        }
        store(y, sums, sum, low, b, info, group);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
nf4_skinny_mma(const u32* __restrict__ codes, const u32* __restrict__ absmax, const u32* __restrict__ header,
               const bf16* __restrict__ x, float* __restrict__ y,
#if BRANCH
               const float* __restrict__ low, const float* __restrict__ b,
#endif
               const __grid_constant__ BranchInfo info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    u32* const pairs = (u32*)shared;
    float *const map = (float*)(pairs + PAIRS), *const sums = map + 256;
    char* const rings = (char*)(sums + WARPS * ROWS * FEATURES);
    static_assert(PAIRS * 4 + 256 * 4 + WARPS * ROWS * FEATURES * 4 + WARPS * STAGES * STAGE == {{ shared }}, "what the launch asks for");
#if !BRANCH
    const float *low = nullptr, *b = nullptr;
#endif
    // Rows that there are not are zeros, and stay it.
    Activations ahead = {};
    const u32 warp = threadIdx.x / 32;
    char* const ring = rings + warp * STAGES * STAGE;
    // The first codes are on their way while the header is read and the pairs are spread.
    start_first(ring, codes, info);
    if (warp < info.in / SPAN) load_x(ahead, x, info, warp, 0);
    const Weight w = { codes, absmax, header, map, __uint_as_float(header[3]), header[0], header[1], header[2] != 0 };
    if (w.nested)
        for (u32 i = threadIdx.x; i < 256; i += THREADS) map[i] = __uint_as_float(header[MAP + i]);
    spread_pairs(pairs);
    __syncthreads();
    const u32 copy = place_in_shared(pairs + threadIdx.x % COPIES);
    if (1u << w.log2_block < CHUNK) run<Scales::Halves>(ring, ahead, x, w, y, sums, low, b, info, copy);
    else if (w.nested && 1u << w.log2_block == CHUNK) run<Scales::Words>(ring, ahead, x, w, y, sums, low, b, info, copy);
    else run<Scales::Whole>(ring, ahead, x, w, y, sums, low, b, info, copy);
}
