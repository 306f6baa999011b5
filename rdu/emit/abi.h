/* What emitted code and the node agree on. This header is built in as text and stands at the head
 * of every emitted unit, so it may include nothing but <stdint.h>, and a change of it needs a new
 * SY_ABI. */
#ifndef SWITCHYARD_RDU_EMIT_ABI_H
#define SWITCHYARD_RDU_EMIT_ABI_H

#include <stdint.h>

#define SY_ABI 1u

/* As struct rdu_weight and struct rdu_q8; the node asserts that they agree. */
struct sy_weight {
    const void *data;
    const void *const *chunk;
    uint32_t chunk_rows, rows, cols;
    int type;
};
struct sy_q8 {
    int8_t *q;
    float *d, *s;
    uint64_t q_stride, b_stride;
};
typedef void sy_mm_q8_fn(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,
                         const struct sy_q8 *x, uint32_t n_tokens, float *y, uint64_t y_stride,
                         _Bool add);
typedef void sy_mm_f32_fn(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,
                          const float *x, uint64_t x_stride, uint32_t n_tokens, float *y,
                          uint64_t y_stride, _Bool add);

/* One host thread's view of a run: as struct run of node/run.c, for code that knows the program by
 * heart. Buffers are at constant offsets (times rows) into `shared`, or `local` for small steps. */
struct sy_run {
    void *host; /* struct run, handed back to the calls below */
    char *shared, *local;
    float *x;
    float *logits;
    uint64_t logits_stride;
    uint32_t tokens, outs;
    uint32_t thread_idx, threads, sockets;
    uint32_t small;   /* every thread makes its own copy of what row-wise launches compute from x */
    uint32_t adapted; /* some token has adapters: products are the node's business */
    const struct sy_weight *weights; /* of the section's scope, of this layer */
    const int32_t *token_ids;
    const uint32_t *pos, *out;
    const float *const *tables;
    /* The leaves, and the node's own way to run a launch. */
    sy_mm_q8_fn *const *mm_q8;
    sy_mm_f32_fn *const *mm_f32;
    void (*launch)(void *host, uint32_t launch_idx);
    void (*count)(void *host, uint32_t launch_idx); /* what a product reads and gathers */
    void (*barrier)(void *host);
    void (*ahead)(void *host,
                  uint32_t launch_idx); /* before each launch: fetch what is read next; or NULL */
};
struct sy_unit {
    uint32_t abi;
    void (*section[3])(struct sy_run *r);
};

/* Expressions: inputs as of rdu_expr_run; stored columns [count, stride]. */
typedef void sy_expr_fn(const void *const *in, uint64_t n, void *ret, float *stored,
                        uint64_t stride);

#endif
