/* Scalar operations of emitted code that C does not have as operators; the same results as
 * rdu/ir/interp_ops.c. Built in as text behind abi.h and kernels/math.h. */
#ifndef SWITCHYARD_RDU_EMIT_PRELUDE_H
#define SWITCHYARD_RDU_EMIT_PRELUDE_H

#define SY_IVDEP _Pragma("GCC ivdep")

static inline int32_t sy_div(int32_t x, int32_t y)
{
    return y == 0 || (y == -1 && x == INT32_MIN) ? 0 : x / y;
}

static inline int32_t sy_mod(int32_t x, int32_t y)
{
    return y == 0 || (y == -1 && x == INT32_MIN) ? 0 : x % y;
}

static inline int32_t sy_to_i32(float x)
{
    return (x >= -2147483648.0f) & (x < 2147483648.0f) ? (int32_t)x : INT32_MIN;
}

static inline int32_t sy_clamp(int32_t v, uint32_t size)
{
    int32_t top = (int32_t)(size > 1 ? size : 1) - 1;
    return v < 0 ? 0 : (v < top ? v : top);
}

/* Rows of this thread, as share_rows of node/run.c. */
static inline void sy_rows(const struct sy_run *r, uint32_t rows, uint32_t all, uint32_t *from,
                           uint32_t *to)
{
    *from = all ? 0 : (uint32_t)((uint64_t)rows * r->thread_idx / r->threads);
    *to = all ? rows : (uint32_t)((uint64_t)rows * (r->thread_idx + 1) / r->threads);
}

/* Row groups of the sockets this thread plays; `unit` groups stay together (shard_groups there). */
static inline void sy_groups(const struct sy_run *r, uint32_t rows, uint32_t unit, uint32_t *from,
                             uint32_t *to)
{
    uint32_t groups = (rows + 7) / 8, units = (groups + unit - 1) / unit;
    uint64_t s = r->sockets;
    uint32_t lo = (uint32_t)(units * (r->thread_idx * s / r->threads) / s) * unit;
    uint32_t hi = (uint32_t)(units * ((r->thread_idx + 1) * s / r->threads) / s) * unit;
    *from = lo < groups ? lo : groups;
    *to = hi < groups ? hi : groups;
}

static inline void sy_mm(const struct sy_run *r, const struct sy_weight *w, uint32_t cols,
                         uint32_t from, uint32_t to, const float *x, uint64_t x_stride,
                         const struct sy_q8 *q, uint32_t tokens, float *y, uint64_t y_stride,
                         _Bool add)
{
    if (from >= to)
        return;
    if (q->q && r->mm_q8[w->type])
        r->mm_q8[w->type](w->data, cols, from, to, q, tokens, y, y_stride, add);
    else
        r->mm_f32[w->type](w->data, cols, from, to, x, x_stride, tokens, y, y_stride, add);
}

/* Rule 1's tree, in place. */
static inline float sy_tree_sum(float *s)
{
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            s[j] = s[j] + s[j + half];
    return s[0];
}

static inline float sy_tree_max(float *s)
{
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            s[j] = s[j + half] > s[j] ? s[j + half] : s[j];
    return s[0];
}

#endif
