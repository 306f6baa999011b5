/* y = W x with f32 activations, rule 5 of rdu/README.md, for both x86 instruction sets. The
 * includer defines
 * - vec, VEC_GROUPS (row groups per vector), vec_zero, vec_set1, vec_load, vec_store, vec_add,
 *   vec_fma;
 * - struct columns and open_columns(type, a, b, run, c): one run of 32 columns of the vector's
 *   groups, whose packed blocks are a and b;
 * - vec_pair(a, b), where VEC_GROUPS is 2: one vector of two groups' rows;
 * - column(type, c, j, k): its column 4 j + k in f32;
 * - PANEL_TOKENS (tile of tokens over a panel).
 *
 * Many tokens: weights are decoded into a panel [columns][rows] once per TOKENS_BLOCK tokens; a
 * tile of tokens then runs down the panel with rows in the lanes, one fused multiply-add per
 * (column, token, vector), two vectors of rows in flight. Few tokens: weights go from memory
 * through registers into the multiply-adds. The runs of a row are chains of their own, so one group
 * alone (a low-rank adapter) can keep eight of them in flight. */

#include "rdu/kernels/x86/decode_raw.h"

#define VEC_ROWS (VEC_GROUPS * RDU_GROUP)
#define VECS_MAX 2
#define PANEL_ROWS (VECS_MAX * VEC_ROWS)
#define CHUNK 256 /* columns of a panel: a whole super-block */
#define TOKENS_BLOCK 64
#define CHAINS 8     /* multiply-adds in flight without a panel */
#define FEW_TOKENS 7 /* up to here a panel does not pay */
#ifndef FLOAT_FEW_TOKENS
#define FLOAT_FEW_TOKENS FEW_TOKENS /* the same for F32, F16, BF16 */
#endif
#define FLOAT_TOKENS 8 /* of their largest tile without a panel */
#ifndef RUNS_MAX
#define RUNS_MAX 2 /* quantised runs in flight for one token */
#endif

struct panel {
    _Alignas(64) float w[CHUNK * PANEL_ROWS];
    _Alignas(64) float acc[TOKENS_BLOCK * PANEL_ROWS];
};

struct call {
    const uint8_t *w;
    size_t group_bytes;
    uint32_t cols;
    const float *x;
    size_t x_stride;
    float *y;
    size_t y_stride;
    bool add;
};

X86_INLINE __m256 load_floats(enum rdu_type type, const uint8_t *p)
{
    if (type == RDU_F32)
        return _mm256_loadu_ps((const float *)p);
    __m128i h = _mm_loadu_si128((const __m128i *)p);
    if (type == RDU_F16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

X86_INLINE size_t float_bytes(enum rdu_type type)
{
    return type == RDU_F32 ? 4 : 2;
}

/* A column of one vector of rows, whose groups are at a and b. */
X86_INLINE vec load_rows(enum rdu_type type, const uint8_t *a, const uint8_t *b)
{
#if VEC_GROUPS > 1
    return vec_pair(load_floats(type, a), load_floats(type, b));
#else
    (void)b;
    return load_floats(type, a);
#endif
}

/* Raw blocks: all have 256 columns. */
X86_INLINE void fill_raw(enum rdu_type type, const uint8_t *group, uint32_t col, unsigned n,
                         float *out)
{
    const size_t block_bytes = rdu_type_info(type)->block_bytes;
    for (unsigned k = 0; k < n; k += 256)
        decode_blocks(type, group + (col + k) / 256 * block_bytes * RDU_GROUP, block_bytes,
                      out + (size_t)k * PANEL_ROWS, PANEL_ROWS);
}

X86_INLINE void fill_run(enum rdu_type type, const uint8_t *a, const uint8_t *b, unsigned run,
                         float *out)
{
    struct columns c;
    open_columns(type, a, b, run, &c);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        X86_UNROLL
        for (unsigned k = 0; k < 4; k++)
            vec_store(out + (size_t)(4 * j + k) * PANEL_ROWS, column(type, &c, j, k));
    }
}

/* Columns [col, col + n) of `groups` groups from `g` on into the panel; what a last vector lacks is
 * repeated from the last group (never stored to y). */
X86_INLINE void fill(enum rdu_type type, const struct call *c, uint32_t g, unsigned groups,
                     uint32_t col, unsigned n, float *out)
{
    unsigned padded = (groups + VEC_GROUPS - 1) / VEC_GROUPS * VEC_GROUPS;
    if (rdu_is_interleaved(type)) {
        const unsigned runs = rdu_block_elems(type) / RDU_RUN;
        for (unsigned i = 0; i < padded; i += VEC_GROUPS) {
            const uint8_t *a = c->w + (g + i) * c->group_bytes;
            const uint8_t *b = i + 1 < groups ? a + c->group_bytes : a;
            for (unsigned k = 0; k < n; k += RDU_RUN) {
                unsigned run = (col + k) / RDU_RUN;
                size_t at = run / runs * rdu_packed_block_bytes(type);
                fill_run(type, a + at, b + at, run % runs,
                         out + (size_t)k * PANEL_ROWS + i * RDU_GROUP);
            }
        }
        return;
    }
    for (unsigned i = 0; i < padded; i++) {
        const uint8_t *group = c->w + (g + BASE_MIN(i, groups - 1)) * c->group_bytes;
        float *to = out + (size_t)i * RDU_GROUP;
        if (type > RDU_BF16) {
            fill_raw(type, group, col, n, to);
            continue;
        }
        const uint8_t *p = group + (size_t)col * RDU_GROUP * float_bytes(type);
        for (unsigned k = 0; k < n; k++)
            _mm256_storeu_ps(to + (size_t)k * PANEL_ROWS,
                             load_floats(type, p + k * RDU_GROUP * float_bytes(type)));
    }
}

/* n columns of the panel times T tokens onto acc [T][PANEL_ROWS]. */
X86_INLINE void multiply(const unsigned T, const unsigned V, const float *w, unsigned n,
                         const float *x, size_t x_stride, bool first, float *acc)
{
    for (unsigned from = 0; from < n; from += RDU_RUN) {
        unsigned to = BASE_MIN(from + RDU_RUN, n);
        vec p[PANEL_TOKENS][VECS_MAX];
        X86_UNROLL
        for (unsigned t = 0; t < T; t++) {
            X86_UNROLL
            for (unsigned v = 0; v < V; v++)
                p[t][v] = vec_zero();
        }
        for (unsigned i = from; i < to; i++) {
            vec row[VECS_MAX];
            X86_UNROLL
            for (unsigned v = 0; v < V; v++)
                row[v] = vec_load(w + (size_t)i * PANEL_ROWS + v * VEC_ROWS);
            X86_UNROLL
            for (unsigned t = 0; t < T; t++) {
                vec in = vec_set1(x[t * x_stride + i]);
                X86_UNROLL
                for (unsigned v = 0; v < V; v++)
                    p[t][v] = vec_fma(row[v], in, p[t][v]);
            }
        }
        X86_UNROLL
        for (unsigned t = 0; t < T; t++) {
            X86_UNROLL
            for (unsigned v = 0; v < V; v++) {
                float *at = acc + t * PANEL_ROWS + v * VEC_ROWS;
                vec sum = first && from == 0 ? vec_zero() : vec_load(at);
                vec_store(at, vec_add(sum, p[t][v]));
            }
        }
    }
}

X86_INLINE void multiply_tokens(const unsigned V, const float *w, unsigned n, const float *x,
                                size_t x_stride, unsigned tokens, bool first, float *acc)
{
    unsigned t = 0;
    for (; t + PANEL_TOKENS <= tokens; t += PANEL_TOKENS)
        multiply(PANEL_TOKENS, V, w, n, x + t * x_stride, x_stride, first,
                 acc + (size_t)t * PANEL_ROWS);
    for (; t + 2 <= tokens; t += 2)
        multiply(2, V, w, n, x + t * x_stride, x_stride, first, acc + (size_t)t * PANEL_ROWS);
    if (t < tokens)
        multiply(1, V, w, n, x + t * x_stride, x_stride, first, acc + (size_t)t * PANEL_ROWS);
}

X86_INLINE void store_group(const float *acc, float *y, bool add)
{
    __m256 v = _mm256_loadu_ps(acc);
    _mm256_storeu_ps(y, add ? _mm256_add_ps(_mm256_loadu_ps(y), v) : v);
}

/* `groups` (at most PANEL_ROWS / 8) groups times `tokens` (at most TOKENS_BLOCK) tokens. */
X86_INLINE void block(enum rdu_type type, const struct call *c, struct panel *panel, uint32_t g,
                      unsigned groups, uint32_t token, unsigned tokens)
{
    for (uint32_t col = 0; col < c->cols; col += CHUNK) {
        unsigned n = BASE_MIN(c->cols - col, (uint32_t)CHUNK);
        fill(type, c, g, groups, col, n, panel->w);
        const float *x = c->x + token * c->x_stride + col;
        if (groups > VEC_GROUPS)
            multiply_tokens(2, panel->w, n, x, c->x_stride, tokens, col == 0, panel->acc);
        else
            multiply_tokens(1, panel->w, n, x, c->x_stride, tokens, col == 0, panel->acc);
    }
    for (unsigned t = 0; t < tokens; t++) {
        for (unsigned i = 0; i < groups; i++)
            store_group(panel->acc + t * PANEL_ROWS + i * RDU_GROUP,
                        c->y + (token + t) * c->y_stride + (size_t)(g + i) * RDU_GROUP, c->add);
    }
}

/* ---- few tokens -------------------------------------------------------------------------------
 */

/* S runs (or part of one, if n < 32) of G groups of float weights times T tokens, onto acc. */
X86_INLINE void stream_runs(enum rdu_type type, const unsigned G, const unsigned T,
                            const unsigned S, const struct call *c, const uint8_t *w,
                            const float *x, unsigned n, __m256 (*acc)[CHAINS])
{
    const size_t step = RDU_GROUP * float_bytes(type);
    __m256 p[CHAINS];
    X86_UNROLL
    for (unsigned i = 0; i < G * T * S; i++)
        p[i] = _mm256_setzero_ps();
    for (unsigned k = 0; k < n; k++) {
        X86_UNROLL
        for (unsigned s = 0; s < S; s++) {
            const size_t at = s * RDU_RUN + k;
            __m256 in[CHAINS];
            X86_UNROLL
            for (unsigned t = 0; t < T; t++)
                in[t] = _mm256_set1_ps(x[t * c->x_stride + at]);
            X86_UNROLL
            for (unsigned g = 0; g < G; g++) {
                __m256 row = load_floats(type, w + g * c->group_bytes + at * step);
                X86_UNROLL
                for (unsigned t = 0; t < T; t++)
                    p[(g * T + t) * S + s] = _mm256_fmadd_ps(row, in[t], p[(g * T + t) * S + s]);
            }
        }
    }
    X86_UNROLL
    for (unsigned i = 0; i < G * T; i++) {
        X86_UNROLL
        for (unsigned s = 0; s < S; s++)
            (*acc)[i] = _mm256_add_ps((*acc)[i], p[i * S + s]);
    }
}

/* G groups of float weights times T tokens, S runs at a time. */
X86_INLINE void stream(enum rdu_type type, const unsigned G, const unsigned T, const unsigned S,
                       const struct call *c, uint32_t g, uint32_t token)
{
    const size_t step = RDU_GROUP * float_bytes(type);
    const float *x = c->x + token * c->x_stride;
    const uint8_t *w = c->w + g * c->group_bytes;
    __m256 acc[CHAINS];
    X86_UNROLL
    for (unsigned i = 0; i < G * T; i++)
        acc[i] = _mm256_setzero_ps();
    uint32_t col = 0;
    for (; col + S * RDU_RUN <= c->cols; col += S * RDU_RUN)
        stream_runs(type, G, T, S, c, w + col * step, x + col, RDU_RUN, &acc);
    for (; col < c->cols; col += RDU_RUN)
        stream_runs(type, G, T, 1, c, w + col * step, x + col,
                    BASE_MIN(c->cols - col, (uint32_t)RDU_RUN), &acc);
    X86_UNROLL
    for (unsigned i = 0; i < G * T; i++) {
        float *y = c->y + (token + i % T) * c->y_stride + (size_t)(g + i / T) * RDU_GROUP;
        _mm256_storeu_ps(y, c->add ? _mm256_add_ps(_mm256_loadu_ps(y), acc[i]) : acc[i]);
    }
}

X86_INLINE void stream_groups(enum rdu_type type, const unsigned T, const struct call *c,
                              uint32_t group_from, uint32_t group_to, uint32_t token)
{
    uint32_t g = group_from;
    if (T == 1)
        for (; g + 8 <= group_to; g += 8)
            stream(type, 8, 1, 1, c, g, token);
    if (T <= 2)
        for (; g + 4 <= group_to; g += 4)
            stream(type, 4, T, 2 / T, c, g, token);
    for (; g + 2 <= group_to; g += 2)
        stream(type, 2, T, 4 / T, c, g, token);
    if (g < group_to)
        stream(type, 1, T, 8 / T, c, g, token);
}

/* One vector of rows of float weights times T tokens: as many chains as tokens. */
X86_INLINE void stream_pairs(enum rdu_type type, const unsigned T, const struct call *c,
                             uint32_t group_from, uint32_t group_to, uint32_t token)
{
    const size_t step = RDU_GROUP * float_bytes(type);
    for (uint32_t g = group_from; g < group_to; g += VEC_GROUPS) {
        const uint8_t *a = c->w + g * c->group_bytes;
        const uint8_t *b = g + 1 < group_to ? a + c->group_bytes : a;
        const unsigned groups = BASE_MIN(group_to - g, (uint32_t)VEC_GROUPS);
        const float *x = c->x + token * c->x_stride;
        float rows[VEC_ROWS];
        vec acc[FLOAT_TOKENS];
        X86_UNROLL
        for (unsigned t = 0; t < T; t++)
            acc[t] = vec_zero();
        for (uint32_t col = 0; col < c->cols; col += RDU_RUN) {
            const uint32_t to = BASE_MIN(col + RDU_RUN, c->cols);
            vec p[FLOAT_TOKENS];
            X86_UNROLL
            for (unsigned t = 0; t < T; t++)
                p[t] = vec_zero();
            for (uint32_t k = col; k < to; k++) {
                vec row = load_rows(type, a + k * step, b + k * step);
                X86_UNROLL
                for (unsigned t = 0; t < T; t++)
                    p[t] = vec_fma(row, vec_set1(x[t * c->x_stride + k]), p[t]);
            }
            X86_UNROLL
            for (unsigned t = 0; t < T; t++)
                acc[t] = vec_add(acc[t], p[t]);
        }
        X86_UNROLL
        for (unsigned t = 0; t < T; t++) {
            vec_store(rows, acc[t]);
            for (unsigned i = 0; i < groups; i++)
                store_group(rows + i * RDU_GROUP,
                            c->y + (token + t) * c->y_stride + (size_t)(g + i) * RDU_GROUP, c->add);
        }
    }
}

/* S runs from `run` on of one vector of rows of quantised weights times T tokens, onto acc. */
X86_INLINE void direct_runs(enum rdu_type type, const unsigned T, const unsigned S,
                            const struct call *c, const uint8_t *a, const uint8_t *b, unsigned run,
                            const float *x, vec *acc)
{
    const unsigned runs_per_block = rdu_block_elems(type) / RDU_RUN;
    struct columns w[RUNS_MAX];
    vec p[RUNS_MAX][PANEL_TOKENS];
    X86_UNROLL
    for (unsigned s = 0; s < S; s++) {
        const size_t at = (run + s) / runs_per_block * rdu_packed_block_bytes(type);
        open_columns(type, a + at, b + at, (run + s) % runs_per_block, &w[s]);
        X86_UNROLL
        for (unsigned t = 0; t < T; t++)
            p[s][t] = vec_zero();
    }
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        X86_UNROLL
        for (unsigned i = 0; i < 4 * S; i++) {
            const unsigned k = i / S, s = i % S;
            vec row = column(type, &w[s], j, k);
            X86_UNROLL
            for (unsigned t = 0; t < T; t++) {
                vec in = vec_set1(x[t * c->x_stride + s * RDU_RUN + 4 * j + k]);
                p[s][t] = vec_fma(row, in, p[s][t]);
            }
        }
    }
    X86_UNROLL
    for (unsigned t = 0; t < T; t++) {
        X86_UNROLL
        for (unsigned s = 0; s < S; s++)
            acc[t] = vec_add(acc[t], p[s][t]);
    }
}

/* One vector of rows of quantised weights times T tokens. */
X86_INLINE void direct(enum rdu_type type, const unsigned T, const struct call *c, uint32_t g,
                       unsigned groups, uint32_t token)
{
    const uint8_t *a = c->w + g * c->group_bytes, *b = groups > 1 ? a + c->group_bytes : a;
    const float *x = c->x + token * c->x_stride;
    const unsigned runs = c->cols / RDU_RUN, S = T == 1 ? RUNS_MAX : 1;
    vec acc[PANEL_TOKENS];
    X86_UNROLL
    for (unsigned t = 0; t < T; t++)
        acc[t] = vec_zero();
    unsigned run = 0;
    for (; run + S <= runs; run += S)
        direct_runs(type, T, S, c, a, b, run, x + (size_t)run * RDU_RUN, acc);
    for (; run < runs; run++)
        direct_runs(type, T, 1, c, a, b, run, x + (size_t)run * RDU_RUN, acc);
    float rows[VEC_ROWS];
    X86_UNROLL
    for (unsigned t = 0; t < T; t++) {
        vec_store(rows, acc[t]);
        for (unsigned i = 0; i < groups; i++)
            store_group(rows + i * RDU_GROUP,
                        c->y + (token + t) * c->y_stride + (size_t)(g + i) * RDU_GROUP, c->add);
    }
}

X86_INLINE void few_tokens(enum rdu_type type, const unsigned T, const struct call *c,
                           uint32_t group_from, uint32_t group_to, uint32_t token)
{
    if (type <= RDU_BF16) {
        stream_groups(type, T, c, group_from, group_to, token);
        return;
    }
    for (uint32_t g = group_from; g < group_to; g += VEC_GROUPS)
        direct(type, T, c, g, BASE_MIN(group_to - g, (uint32_t)VEC_GROUPS), token);
}

X86_INLINE void mm_f32(enum rdu_type type, const void *w, uint32_t cols, uint32_t group_from,
                       uint32_t group_to, const float *x, size_t x_stride, uint32_t n_tokens,
                       float *y, size_t y_stride, bool add)
{
#if VEC_GROUPS > 1
    if (group_to - group_from < VEC_GROUPS) { /* half of each vector would be for nothing */
        rdu_x86_one_group_mm_f32(type)(w, cols, group_from, group_to, x, x_stride, n_tokens, y,
                                       y_stride, add);
        return;
    }
#endif
    struct call c = {
        .w = w,
        .group_bytes = rdu_pack_bytes(type, RDU_GROUP, cols),
        .cols = cols,
        .x = x,
        .x_stride = x_stride,
        .y = y,
        .y_stride = y_stride,
        .add = add,
    };
    if (type <= RDU_BF16 ? n_tokens <= FLOAT_FEW_TOKENS
                         : rdu_is_interleaved(type) && n_tokens <= FEW_TOKENS) {
        uint32_t t = 0;
        if (type <= RDU_BF16)
            for (; t + 8 <= n_tokens; t += 8)
                stream_pairs(type, 8, &c, group_from, group_to, t);
        for (; t + 4 <= n_tokens; t += 4)
            few_tokens(type, 4, &c, group_from, group_to, t);
        for (; t + 2 <= n_tokens; t += 2)
            few_tokens(type, 2, &c, group_from, group_to, t);
        if (t < n_tokens)
            few_tokens(type, 1, &c, group_from, group_to, t);
        return;
    }
    struct panel panel;
    for (uint32_t t = 0; t < n_tokens; t += TOKENS_BLOCK) {
        unsigned tokens = BASE_MIN(n_tokens - t, (uint32_t)TOKENS_BLOCK);
        for (uint32_t g = group_from; g < group_to; g += PANEL_ROWS / RDU_GROUP)
            block(type, &c, &panel, g, BASE_MIN(group_to - g, (uint32_t)(PANEL_ROWS / RDU_GROUP)),
                  t, tokens);
    }
}

#define DEFINE_MM(name, type)                                                                      \
    static void name(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,         \
                     const float *x, size_t x_stride, uint32_t n_tokens, float *y,                 \
                     size_t y_stride, bool add)                                                    \
    {                                                                                              \
        mm_f32(type, w, cols, group_from, group_to, x, x_stride, n_tokens, y, y_stride, add);      \
    }
DEFINE_MM(mm_f32_, RDU_F32)
DEFINE_MM(mm_f16, RDU_F16)
DEFINE_MM(mm_bf16, RDU_BF16)
DEFINE_MM(mm_q4_0, RDU_Q4_0)
DEFINE_MM(mm_q4_1, RDU_Q4_1)
DEFINE_MM(mm_q5_0, RDU_Q5_0)
DEFINE_MM(mm_q5_1, RDU_Q5_1)
DEFINE_MM(mm_q8_0, RDU_Q8_0)
DEFINE_MM(mm_q2_k, RDU_Q2_K)
DEFINE_MM(mm_q3_k, RDU_Q3_K)
DEFINE_MM(mm_q4_k, RDU_Q4_K)
DEFINE_MM(mm_q5_k, RDU_Q5_K)
DEFINE_MM(mm_q6_k, RDU_Q6_K)
DEFINE_MM(mm_iq1_s, RDU_IQ1_S)
DEFINE_MM(mm_iq2_xxs, RDU_IQ2_XXS)
DEFINE_MM(mm_iq2_xs, RDU_IQ2_XS)
DEFINE_MM(mm_iq2_s, RDU_IQ2_S)
DEFINE_MM(mm_iq3_xxs, RDU_IQ3_XXS)
DEFINE_MM(mm_iq3_s, RDU_IQ3_S)
DEFINE_MM(mm_iq4_nl, RDU_IQ4_NL)
DEFINE_MM(mm_iq4_xs, RDU_IQ4_XS)
DEFINE_MM(mm_tq1_0, RDU_TQ1_0)
DEFINE_MM(mm_tq2_0, RDU_TQ2_0)

static rdu_mm_f32_fn *const row_fns[RDU_TYPES] = {
    [RDU_F32] = mm_f32_,      [RDU_F16] = mm_f16,       [RDU_BF16] = mm_bf16,
    [RDU_Q4_0] = mm_q4_0,     [RDU_Q4_1] = mm_q4_1,     [RDU_Q5_0] = mm_q5_0,
    [RDU_Q5_1] = mm_q5_1,     [RDU_Q8_0] = mm_q8_0,     [RDU_Q2_K] = mm_q2_k,
    [RDU_Q3_K] = mm_q3_k,     [RDU_Q4_K] = mm_q4_k,     [RDU_Q5_K] = mm_q5_k,
    [RDU_Q6_K] = mm_q6_k,     [RDU_IQ1_S] = mm_iq1_s,   [RDU_IQ2_XXS] = mm_iq2_xxs,
    [RDU_IQ2_XS] = mm_iq2_xs, [RDU_IQ2_S] = mm_iq2_s,   [RDU_IQ3_XXS] = mm_iq3_xxs,
    [RDU_IQ3_S] = mm_iq3_s,   [RDU_IQ4_NL] = mm_iq4_nl, [RDU_IQ4_XS] = mm_iq4_xs,
    [RDU_TQ1_0] = mm_tq1_0,   [RDU_TQ2_0] = mm_tq2_0,
};
