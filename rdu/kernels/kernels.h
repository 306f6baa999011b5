/* The leaves: stand-alone functions of primitive arguments, one table per ISA. kernels_init fills every
 * slot with the scalar reference, then lets better ISAs override (dav1d's way): no slot is ever empty
 * and no call site asks for the ISA. All follow the order of operations in rdu/README.md. */
#ifndef SWITCHYARD_RDU_KERNELS_H
#define SWITCHYARD_RDU_KERNELS_H

#include "rdu/rdu.h"

/* int8 activations of n_tokens rows: q [n_tokens, q_stride] int8, 64-byte aligned rows,
 * d and s [n_tokens, b_stride] f32, one per block of 32 columns. Columns are padded to 32 with q = 0. */
struct rdu_q8 {
    int8_t *q;
    float *d, *s;
    size_t q_stride, b_stride;
};

/* y[t, 8*g + r] for the row groups [group_from, group_to) of packed W (address of group 0), all tokens.
 * add: y = y + result instead of y = result. Padding rows of the last group are written too (as 0 or
 * unchanged): y rows are padded to a multiple of 8. x, y strides in floats. */
typedef void rdu_mm_q8_fn(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,
                          const struct rdu_q8 *x, uint32_t n_tokens, float *y, size_t y_stride,
                          bool add);
typedef void rdu_mm_f32_fn(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,
                           const float *x, size_t x_stride, uint32_t n_tokens, float *y,
                           size_t y_stride, bool add);

/* Attention of one token for `heads` consecutive q heads that share one kv head, over blocks
 * [block_from, block_to) counted in absolute positions / 32; visible positions are [pos_from, pos_to).
 * `block` [..] are the addresses of this layer's and kv head's blocks (K then V), indexed by absolute
 * block number. State in and out, so that a context may be split and merged: m, l [heads],
 * o [heads, head_dim]; start with m = -inf, l = 0, o = 0 (rdu/README.md rule 9, before the final
 * division). */
struct rdu_attn_args {
    const float *q;          /* [heads, head_dim] */
    const void *const *block;
    uint32_t heads, head_dim, block_from, block_to, pos_from, pos_to;
    float scale, softcap;
    float *m, *l, *o;
};
typedef void rdu_attn_fn(const struct rdu_attn_args *a);
/* The same for `count` tokens of one sequence at once, which share each load of K and V: a[i].block,
 * heads, head_dim, scale and softcap agree, the rest is the token's own. Same bits as one call each;
 * 4 to 8 tokens are a few percent (AVX2) to 15 % (AVX-512) faster. */
typedef void rdu_attn_tile_fn(const struct rdu_attn_args *a, uint32_t count);

struct rdu_kernels {
    const char *isa;
    rdu_mm_q8_fn *mm_q8[RDU_TYPES];   /* types without an int8 form have NULL: use mm_f32 */
    rdu_mm_f32_fn *mm_f32[RDU_TYPES];
    rdu_attn_fn *attn[RDU_KV_TYPES];  /* by enum rdu_kv_type */
    rdu_attn_tile_fn *attn_tile[RDU_KV_TYPES];
    /* One row each. n in elements. */
    void (*rms_norm)(const float *x, const float *w, float eps, uint32_t n, float *y);
    /* q padded to a multiple of 32 with zeros; d, s [ceil(n/32)] */
    void (*quantize)(const float *x, uint32_t n, int8_t *q, float *d, float *s);
    void (*silu_mul)(const float *gate, const float *up, uint32_t n, float *y);
    void (*gelu_mul)(const float *gate, const float *up, uint32_t n, float *y);
    void (*gelu)(const float *x, uint32_t n, float *y);
    void (*center)(const float *x, uint32_t n, float *y); /* x - mean */
    void (*add)(const float *a, const float *b, uint32_t n, float *y);
    void (*axpy)(float a, const float *x, uint32_t n, float *y); /* y = fma(a, x, y) */
    void (*scale)(const float *x, float factor, uint32_t n, float *y);
    void (*softcap)(const float *x, float cap, uint32_t n, float *y);
    /* x [heads, head_dim] in place; c, s [rot/2] of the position */
    void (*rope)(float *x, const float *c, const float *s, uint32_t heads, uint32_t head_dim,
                 uint32_t rot, enum rdu_rope style);
    /* One token's k and v [head_dim] of one kv head into slot (0..31) of a block. */
    void (*kv_store[RDU_KV_TYPES])(void *block, uint32_t slot, uint32_t head_dim, const float *k, const float *v);
    /* Row `row` of a packed matrix to f32. */
    void (*unpack_row)(enum rdu_type type, const void *w, uint32_t row, uint32_t cols, float *y);
    /* Largest element and its index (the lowest on ties); NaN never wins. n >= 1. */
    void (*argmax)(const float *x, uint32_t n, uint32_t *ret_idx, float *ret_max);
    /* This instruction set's best multiply-add on registers, `rounds` times; returns the operations done
     * (a multiply and an add are two). The limits that leaves are held to; *sink keeps the work alive. */
    double (*peak_int8)(uint32_t rounds, float *sink);
    double (*peak_f32)(uint32_t rounds, float *sink);
};

/* cpu: "scalar", "avx2", "avx512", or NULL for SWITCHYARD_CPU, else the best this machine has.
 * ERR_UNSUPPORTED if the machine lacks what was asked for, ERR_INVALID for an unknown name. */
enum err_code rdu_kernels_init(struct rdu_kernels *k, const char *cpu, struct err *e) BASE_NODISCARD;

/* Scalar accessors to one element of packed weights; the interpreter's loads. Row, column absolute. */
float rdu_packed_f32(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t col);
/* Integer form (rule 6): wq of a column, wd and wm of a block of 32; only where mm_q8 exists and the
 * type has 32-element blocks. */
int32_t rdu_packed_q(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t col);
float rdu_packed_d(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t block);
float rdu_packed_m(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t block);
bool rdu_type_has_q8(enum rdu_type type);  /* rule 6 applies */
bool rdu_type_has_min(enum rdu_type type); /* rule 6's second fma applies */

#endif
