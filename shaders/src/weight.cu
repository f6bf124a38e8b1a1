// A weight in NF4, laid out as `halfbyte::ops::Nf4Primitive` says, and what its kernels have in common. This text is put
// before every kernel that reads a weight.
typedef unsigned int u32;
// Rows of x, output features, input features.
struct Info { u32 rows, out, in, unused; };
// The same with a low-rank branch beside the weight: its rank, and what multiplies it.
struct BranchInfo : Info { u32 rank; float scaling; };

__constant__ float NF4[16] = { {{ nf4_table }} };
// Where in the header the levels of the scales' map and the scales of the scales begin.
constexpr u32 MAP = 4, NESTED = 260;

struct Weight {
    const u32 *codes, *absmax, *header;
    const float* map;
    float offset;
    u32 count, log2_block;
    bool nested;
};

// A scale as it is loaded. To finish it is to wait for memory, so that is done late.
struct Scale { u32 code; float nested; };

__device__ __forceinline__ Scale fetch_scale(const Weight& w, u32 element) {
    const u32 block = element >> w.log2_block;
    if (!w.nested) return { w.absmax[block], 0.0f };
    return { ((const unsigned char*)w.absmax)[block], __uint_as_float(w.header[NESTED + block / 256]) };
}

__device__ __forceinline__ float finish_scale(const Weight& w, Scale scale) {
    // Two roundings, as the reference does it: a fused multiply-add would change the last bit.
    if (w.nested) return __fadd_rn(__fmul_rn(w.map[scale.code], scale.nested), w.offset);
    return __uint_as_float(scale.code);
}

// Eight codes from any position on, the first one in the top nibble.
__device__ __forceinline__ u32 codes_at(const Weight& w, u32 first) {
    const u32 words = w.count / 8 + (w.count % 8 != 0), word = first / 8;
    const u32 high = word < words ? __byte_perm(w.codes[word], 0, 0x0123) : 0;
    const u32 low = word + 1 < words ? __byte_perm(w.codes[word + 1], 0, 0x0123) : 0;
    return __funnelshift_l(low, high, 4 * (first % 8));
}
