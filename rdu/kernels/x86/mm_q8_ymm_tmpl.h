/* Int8 leaves with one row group (8 rows) in the lanes. The includer defines
 * - integer_sum(type, w, x): I of rule 6 as f32 for 8 rows from unpacked weights and a record;
 * - TILE_MAX (tokens of a tile);
 * and gets `row_fns`, the leaves by type.
 *
 * A tile walks the rows group by group, so the weights are one sequential stream: the hardware
 * prefetcher keeps up with that and with nothing else (measured from memory at one token: 30 GB/s
 * of the 34 a plain read gets; two groups side by side 14). */

/* acc of one token after one run. */
X86_INLINE __m256 token_run(enum rdu_type type, const struct weights *w, const struct record *x,
                            __m256 acc)
{
    __m256 d = _mm256_mul_ps(w->d, _mm256_set1_ps(x->d));
    acc = _mm256_fmadd_ps(d, integer_sum(type, w, x), acc);
    if (type == RDU_Q2_K) {
        X86_UNROLL
        for (unsigned i = 0; i < 2; i++)
            acc = _mm256_fmadd_ps(w->m[i], _mm256_set1_ps(x->d * (float)x->start[i]), acc);
    } else if (rdu_has_min(type)) {
        acc = _mm256_fmadd_ps(w->m[0], _mm256_set1_ps(x->s), acc);
    }
    return acc;
}

/* Q6_K's runs jump between the fields of their block, which hardware prefetch does not follow (from
 * memory at one token 11.7 -> 25.8 GB/s); the others stream better without help. */
X86_INLINE void prefetch_block(enum rdu_type type, const uint8_t *w)
{
    if (type != RDU_Q6_K)
        return;
    const size_t bytes = rdu_packed_block_bytes(type);
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)w + 8 * bytes + i, _MM_HINT_T1);
}

/* One group at `w` times T tokens; y is the group's place in the first token's row. */
X86_INLINE void tile(enum rdu_type type, const unsigned T, const uint8_t *w, unsigned runs,
                     const struct record *x, float *y, size_t y_stride, bool add)
{
    const unsigned runs_per_block = rdu_block_elems(type) / RDU_RUN;
    const unsigned blocks = runs / runs_per_block;
    __m256 acc[TILE_MAX];
    X86_UNROLL
    for (unsigned t = 0; t < T; t++)
        acc[t] = _mm256_setzero_ps();
    for (unsigned i = 0; i < blocks; i++, w += rdu_packed_block_bytes(type)) {
        struct block b;
        open_block(type, w, &b);
        prefetch_block(type, w);
        for (unsigned run = 0; run < runs_per_block; run++, x += T) {
            struct weights u;
            unpack(type, &b, run, &u);
            X86_UNROLL
            for (unsigned t = 0; t < T; t++)
                acc[t] = token_run(type, &u, x + t, acc[t]);
        }
    }
    X86_UNROLL
    for (unsigned t = 0; t < T; t++) {
        float *at = y + t * y_stride;
        _mm256_storeu_ps(at, add ? _mm256_add_ps(_mm256_loadu_ps(at), acc[t]) : acc[t]);
    }
}

X86_INLINE void group_times_tokens(enum rdu_type type, const uint8_t *w, unsigned runs,
                                   const struct record *records, uint32_t tokens, float *y,
                                   size_t y_stride, bool add)
{
    for (uint32_t t = 0, n; t < tokens; t += n) {
        const struct record *x = records + (size_t)t * runs;
        float *at = y + t * y_stride;
        n = tile_tokens(tokens - t, TILE_MAX);
#if TILE_MAX >= 8
        if (n == 8) {
            tile(type, 8, w, runs, x, at, y_stride, add);
            continue;
        }
        if (n == 4) {
            tile(type, 4, w, runs, x, at, y_stride, add);
            continue;
        }
#endif
        if (n == 2)
            tile(type, 2, w, runs, x, at, y_stride, add);
        else
            tile(type, 1, w, runs, x, at, y_stride, add);
    }
}

X86_INLINE void mm_q8(enum rdu_type type, const void *w, uint32_t cols, uint32_t group_from,
                      uint32_t group_to, const struct rdu_q8 *x, uint32_t n_tokens, float *y,
                      size_t y_stride, bool add)
{
    struct record records[RECORDS_MAX];
    const unsigned runs = cols / RDU_RUN;
    const size_t group_bytes =
        (size_t)(cols / rdu_block_elems(type)) * rdu_packed_block_bytes(type);
    for (uint32_t t = 0, n; t < n_tokens; t += n) {
        n = pass_tokens(n_tokens - t, runs);
        make_pass_records(type, x, t, n, TILE_MAX, runs, records);
        for (uint32_t g = group_from; g < group_to; g++)
            group_times_tokens(type, (const uint8_t *)w + g * group_bytes, runs, records, n,
                               y + t * y_stride + (size_t)g * RDU_GROUP, y_stride, add);
    }
}

#define DEFINE_MM(name, type)                                                                      \
    static void name(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,         \
                     const struct rdu_q8 *x, uint32_t n_tokens, float *y, size_t y_stride,         \
                     bool add)                                                                     \
    {                                                                                              \
        mm_q8(type, w, cols, group_from, group_to, x, n_tokens, y, y_stride, add);                 \
    }
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

static rdu_mm_q8_fn *const row_fns[RDU_TYPES] = {
    [RDU_Q4_0] = mm_q4_0, [RDU_Q4_1] = mm_q4_1, [RDU_Q5_0] = mm_q5_0, [RDU_Q5_1] = mm_q5_1,
    [RDU_Q8_0] = mm_q8_0, [RDU_Q2_K] = mm_q2_k, [RDU_Q3_K] = mm_q3_k, [RDU_Q4_K] = mm_q4_k,
    [RDU_Q5_K] = mm_q5_k, [RDU_Q6_K] = mm_q6_k,
};
