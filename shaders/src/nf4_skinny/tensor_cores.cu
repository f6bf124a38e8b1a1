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
// Of every pair of levels a line of shared memory, a copy for each lane; 256 >> CLOSER bytes from one line to the next.
constexpr u32 COPIES = 32, CLOSER = {{ closer }}, APART = 64 >> CLOSER, PAIRS = 256 * APART;
static_assert(APART >= COPIES, "lines overlap");
// Spans of a warp that are in shared memory or on their way there.
constexpr u32 STAGES = {{ stages }};

#define BRANCH {{ branch }}

// How a weight's scales lie: double-quantized in blocks of CHUNK, so that a word has those of a span; whole chunks to a block, or more
// of them; two blocks to a chunk.
enum class Scales { Words, Whole, Halves };

// A stage of a ring: the codes of a span of each feature, a line of 16-byte chunks, and a word each of scales. Of four neighbouring lines
// the chunks are permuted, so that lanes that read the same of each find it in different banks.
constexpr u32 LINE = SPAN / 2, SCALES_AT = FEATURES * LINE, STAGE = SCALES_AT + FEATURES * 4;
__device__ __forceinline__ u32 chunk_at(u32 feature, u32 chunk) { return feature * LINE + (chunk ^ feature % 4 * 2) * 16; }

// Spans of a feature, and groups of features.
__device__ __forceinline__ u32 spans(const Info& info) { return info.in / SPAN; }
__device__ __forceinline__ u32 groups(const Info& info) { return (info.out + FEATURES - 1) / FEATURES; }

// The first of a feature's spans among those of the whole weight; past the end it is the last feature there is, which is not stored there.
__device__ __forceinline__ u32 first_span(const Info& info, u32 group, u32 feature) {
    return min(group * FEATURES + feature, info.out - 1) * spans(info);
}

// Lines that a lane copies a chunk of, every so many features'.
constexpr u32 COPIED = FEATURES * LINE / 16 / 32, EVERY = FEATURES / COPIED;
static_assert(EVERY % 4 == 0, "lines so far apart are permuted alike");

// The span that a warp copies next, of a group's features. Beside its codes a span is to cost as few instructions as can be: what is the same for
// all spans of a group is kept.
struct Copies {
    u32 group, span;
    // The first spans of the features whose codes a lane copies, and of that whose scales it does.
    u32 codes[COPIED], scales;
    // Where the lane's chunk of a line lies in the weight's first line, and that of its first line in a stage.
    const char* from;
    u32 to;
};

__device__ __forceinline__ void begin(Copies& next, const Info& info, u32 group) {
    const u32 lane = threadIdx.x % 32;
    next.group = group;
    next.span = threadIdx.x / 32;
#pragma unroll
    for (u32 i = 0; i < COPIED; i++) next.codes[i] = first_span(info, group, lane / (LINE / 16) + i * EVERY);
    next.scales = first_span(info, group, lane);
}

// A warp's first span; a warp without one is past all groups.
__device__ __forceinline__ Copies first_copies(const u32* codes, const Info& info) {
    const u32 line = threadIdx.x % 32 / (LINE / 16), chunk = threadIdx.x % (LINE / 16);
    Copies first;
    first.from = kept((const char*)codes + chunk * 16);
    first.to = chunk_at(line, chunk);
    begin(first, info, threadIdx.x / 32 < spans(info) ? blockIdx.x : groups(info));
    return first;
}

__device__ __forceinline__ void advance(Copies& next, const Info& info) {
    next.span += WARPS;
    if (next.span >= spans(info)) begin(next, info, next.group + gridDim.x);
}

// Starts the copies of a span's codes to a stage.
__device__ __forceinline__ void start_codes(char* stage, const Info& info, const Copies& next) {
    if (next.group >= groups(info)) return;
#pragma unroll
    for (u32 i = 0; i < COPIED; i++)
        copy_async(stage + next.to + i * EVERY * LINE, next.from + (size_t)(next.codes[i] + next.span) * LINE, true);
}

// The same of its scales, if they are a word of each feature.
template <Scales SCALES>
__device__ __forceinline__ void start_scales(char* stage, const Weight& w, const Info& info, const Copies& next) {
    const u32 lane = threadIdx.x % 32;
    if (SCALES != Scales::Words || lane >= FEATURES || next.group >= groups(info)) return;
    copy_word_async(stage + SCALES_AT + lane * 4, w.absmax + (next.scales + next.span), true);
}

// Which of a group's features is a lane's first or second one.
__device__ __forceinline__ u32 feature_of(u32 which) { return which * 8 + threadIdx.x % 32 / 4; }

// What the lane's 16 codes of a chunk are multiplied by; `span` is that among those of the whole weight.
template <Scales SCALES>
__device__ __forceinline__ float scale_of(const char* stage, const Weight& w, u32 span, u32 chunk, u32 which) {
    if (SCALES != Scales::Words)
        return finish_scale(w, fetch_scale(w, span * SPAN + chunk * CHUNK + threadIdx.x % 4 * 16));
    const u32 word = *(const u32*)(stage + SCALES_AT + feature_of(which) * 4);
    // A word's four blocks have the same nested scale.
    return finish_scale(w, { __byte_perm(word, 0, 0x4440 + chunk), __uint_as_float((w.header + NESTED)[span / (256 / CHUNKS)]) });
}

// What a lane takes of a chunk of x, of one row of each eight: 16 neighbours. So the inner dimension is summed up in an order in which a
// lane's neighbours in memory are what a product takes from it.
struct Activations { uint4 of[EIGHTS][2]; };

// Where the lane's part of its rows begins. Past the last row it is the last one's, whose products are not stored again: to load nothing there,
// registers would have to be kept as they were, by as many instructions as loads.
struct Rows { const uint4* of[EIGHTS]; };

__device__ __forceinline__ Rows rows_of(const bf16* x, const Info& info) {
    Rows rows;
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) {
        const u32 row = min(eight * 8 + threadIdx.x % 32 / 4, info.rows - 1);
        rows.of[eight] = (const uint4*)(x + row * info.in) + threadIdx.x % 4 * 2;
    }
    return rows;
}

// From a span on.
__device__ __forceinline__ Rows rows_from(const Rows& rows, u32 span) {
    Rows from;
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) from.of[eight] = rows.of[eight] + span * (SPAN / 8);
    return from;
}

__device__ __forceinline__ void load_x(Activations& to, const Rows& from, u32 chunk) {
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++)
#pragma unroll
        for (u32 i = 0; i < 2; i++) to.of[eight][i] = from.of[eight][chunk * (CHUNK / 8) + i];
}

__device__ __forceinline__ u32 scaled_pair(u32 pair, float scale) {
    return pack_bf16(__uint_as_float(pair << 16) * scale, __uint_as_float(pair & 0xffff0000) * scale);
}

// The levels of two codes, a byte of a word; it is known when this is compiled which.
__device__ __forceinline__ u32 levels(u32 pairs, u32 word, u32 byte) {
    const u32 within = threadIdx.x % 32 * 4 << CLOSER;
    switch (byte) {
    case 0: return load_by_byte<0, CLOSER>(pairs, within, word);
    case 1: return load_by_byte<1, CLOSER>(pairs, within, word);
    case 2: return load_by_byte<2, CLOSER>(pairs, within, word);
    default: return load_by_byte<3, CLOSER>(pairs, within, word);
    }
}

// Adds a span's products to the sums: lane l has those of its two features, whose spans of the weight begin with `first`, with the rows
// 2 (l % 4) and the next of each eight. `ahead` has the first chunk of x, and then that of the span after it; `pairs` is where the levels lie.
template <Scales SCALES>
__device__ __forceinline__ void multiply(const char* stage, Activations& ahead, const Rows& x, const Weight& w, u32 pairs,
                                         const u32 (&first)[2], u32 span, u32 span_after, float (&sum)[EIGHTS][4]) {
    const Rows from = rows_from(x, span), after = rows_from(x, span_after);
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
        float part[EIGHTS][4] = {}, scale[2];
#pragma unroll
        for (u32 which = 0; which < 2; which++)
            scale[which] = scale_of<SCALES>(stage, w, first[which] + span, chunk, which);
        // Of two features, FEATURES / 2 apart, 16 codes.
        uint2 codes[2];
#pragma unroll
        for (u32 which = 0; which < 2; which++) {
            const u32 place = chunk_at(feature_of(0), chunk * 2 + threadIdx.x % 4 / 2) + threadIdx.x % 2 * 8;
            codes[which] = *(const uint2*)(stage + place + which * (FEATURES / 2 * LINE));
        }
        const Activations now = ahead;
        load_x(ahead, chunk + 1 < CHUNKS ? from : after, (chunk + 1) % CHUNKS);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 a[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                // Two codes of the first feature, of the second one, and then two more of each.
                const u32 word = i / 2 ? codes[j % 2].y : codes[j % 2].x;
                a[j] = levels(pairs, word, i % 2 * 2 + j / 2);
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
    for (u32 i = threadIdx.x; i < 256 * COPIES / 4; i += THREADS) {
        const u32 byte = i / (COPIES / 4);
        // In memory order the first element of a byte is the high nibble.
        const float first = __shfl_sync(0xffffffff, level, byte / 16), second = __shfl_sync(0xffffffff, level, byte % 16);
        const u32 pair = pack_bf16(first, second);
        *(uint4*)(pairs + byte * APART + i % (COPIES / 4) * 4) = make_uint4(pair, pair, pair, pair);
    }
}

// Of the products of a lane with eight rows, the row and the feature of one.
__device__ __forceinline__ u32 row_of(u32 which) { return threadIdx.x % 4 * 2 + which % 2; }

#if BRANCH
// Adds a warp's part of the branch, which is as many more inner elements as its rank. It is begun with: whoever waits for these loads would wait
// for codes. What is past the last row or feature is the last one's, and not stored.
__device__ __forceinline__ void add_branch(const float* low, const float* b, const BranchInfo& info, u32 group,
                                           float (&sum)[EIGHTS][4]) {
#pragma unroll 1
    for (u32 k = threadIdx.x / 32; k < info.rank; k += WARPS) {
        float factor[2];
#pragma unroll
        for (u32 which = 0; which < 2; which++) {
            const u32 feature = min(group * FEATURES + feature_of(which), info.out - 1);
            factor[which] = info.scaling * b[(size_t)feature * info.rank + k];
        }
#pragma unroll
        for (u32 eight = 0; eight < EIGHTS; eight++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 row = min(eight * 8 + row_of(i), info.rows - 1);
                sum[eight][i] += factor[i / 2] * low[row * info.rank + k];
            }
    }
}
#endif

// What a warp has of a group, product by product of all its lanes; and all warps.
constexpr u32 PART = ROWS * FEATURES, SUMS = WARPS * PART;

// Adds up what the warps have of a group. `sums` are not those of the group before: that may still be added up, and is when all have come here
// again.
__device__ __forceinline__ void store(float* y, float* sums, const float (&sum)[EIGHTS][4], const BranchInfo& info,
                                      u32 group) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) sums[warp * PART + (eight * 4 + i) * 32 + lane] = sum[eight][i];
    __syncthreads();
    for (u32 at = threadIdx.x; at < PART; at += THREADS) {
        const u32 which = at / 32 % 4, row = at / 128 * 8 + row_of(which), feature = group * FEATURES + feature_of(which / 2);
        if (row >= info.rows || feature >= info.out) continue;
        float total = 0;
        for (u32 part = 0; part < WARPS; part++) total += sums[part * PART + at];
        y[(size_t)row * info.out + feature] = total;
    }
}

// Starts the copies of the codes of a warp's first spans, as many as come before the first one is taken.
__device__ __forceinline__ void start_first(char* ring, const u32* codes, const Info& info) {
    Copies next = first_copies(codes, info);
    for (u32 i = 0; i < STAGES - 1; i++, advance(next, info)) start_codes(ring + i * STAGE, info, next);
}

// All groups of the block; codes of the first spans and the first activations are on their way.
template <Scales SCALES>
__device__ __forceinline__ void run(char* ring, Activations& ahead, const Rows& x, const Weight& w, float* y, float* sums,
                                    const float* low, const float* b, const BranchInfo& info, u32 pairs) {
    const u32 warp = threadIdx.x / 32;
    Copies next = first_copies(w.codes, info);
    // One group of copies for all of the first spans. There is one for each span, an empty one where there is no span: waits count groups.
    for (u32 i = 0; i < STAGES - 1; i++, advance(next, info)) start_scales<SCALES>(ring + i * STAGE, w, info, next);
    for (u32 i = 0; i < STAGES - 1; i++) commit_copies();
    // Where the stage lies that is there; and the sums.
    u32 now = 0, turn = 0;
    for (u32 group = blockIdx.x; group < groups(info); group += gridDim.x) {
        float sum[EIGHTS][4] = {};
#if BRANCH
        add_branch(low, b, info, group, sum);
#endif
        const u32 first[2] = { first_span(info, group, feature_of(0)), first_span(info, group, feature_of(1)) };
        for (u32 span = warp; span < spans(info);) {
            await_copies_but<STAGES - 2>();
            // What every lane has copied is there for all of them; and the stage that is taken next, all have read.
            __syncwarp();
            const u32 taken = (now == 0 ? STAGES * STAGE : now) - STAGE;
            start_codes(ring + taken, info, next);
            start_scales<SCALES>(ring + taken, w, info, next);
            commit_copies();
            advance(next, info);
            const u32 after = span + WARPS;
            multiply<SCALES>(ring + now, ahead, x, w, pairs, first, span, after < spans(info) ? after : warp, sum);
            now = now + STAGE < STAGES * STAGE ? now + STAGE : 0;
            span = after;
        }
        store(y, sums + turn, sum, info, group);
        turn = SUMS - turn;
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
    char* const rings = (char*)(sums + 2 * SUMS);
    static_assert(PAIRS * 4 + 256 * 4 + 2 * SUMS * 4 + WARPS * STAGES * STAGE == {{ shared }}, "what the launch asks for");
#if !BRANCH
    const float *low = nullptr, *b = nullptr;
#endif
    const Rows rows = rows_of(x, info);
    Activations ahead;
    const u32 warp = threadIdx.x / 32;
    char* const ring = rings + warp * STAGES * STAGE;
    // The first codes are on their way while the header is read and the pairs are spread.
    start_first(ring, codes, info);
    if (warp < spans(info)) load_x(ahead, rows_from(rows, warp), 0);
    const Weight w = { codes, absmax, header, map, __uint_as_float(header[3]), header[0], header[1], header[2] != 0 };
    if (w.nested)
        for (u32 i = threadIdx.x; i < 256; i += THREADS) map[i] = __uint_as_float(header[MAP + i]);
    spread_pairs(pairs);
    __syncthreads();
    const u32 place = place_in_shared(pairs);
    if (1u << w.log2_block < CHUNK) run<Scales::Halves>(ring, ahead, rows, w, y, sums, low, b, info, place);
    else if (w.nested && 1u << w.log2_block == CHUNK) run<Scales::Words>(ring, ahead, rows, w, y, sums, low, b, info, place);
    else run<Scales::Whole>(ring, ahead, rows, w, y, sums, low, b, info, place);
}
