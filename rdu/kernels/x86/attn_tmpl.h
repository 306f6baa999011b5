/* Attention, rule 9 of rdu/README.md, for both x86 instruction sets. The includer defines
 * - vec, VEC (lanes), ROWS_MAX, BLOCKS_MAX, VALUE_VECS_MAX;
 * - for R rows as constants: score_vecs(R), vectors of positions per pass over K, score_blocks(R),
 *   blocks per pass, value_vecs(R), vectors of o per pass over V;
 * - vec_zero, vec_set1, vec_load, vec_store, vec_sub, vec_mul, vec_div, vec_fma, exp_ps, tanh_ps;
 * - vec_max(a, b): a > b ? a : b;
 * - vec_visible(v, fill, base, from, to): lanes base + i outside [from, to) replaced by `fill`;
 * - load_kv(type, p), load_one(type, p);
 * - exp_pairs(x): exp in place of 2 * ROWS_MAX floats;
 * - vec_fold(v): the vectors of 32 slots to the 16 lanes of sum16, or as far as one vector goes;
 * - sum_lanes(v, ret), max_lanes(v, ret): ROWS_MAX vectors to a number each, the sum by sum16's
 * tree.
 *
 * A row is one head of one token. Rows that share a kv head go through K and V together: positions
 * in the lanes for the scores, dimensions for the values, one fused multiply-add per (dimension,
 * row, vector). Scores of invisible positions are computed from whatever memory holds and then
 * replaced; values of invisible positions are not read. A row's own order of operations does not
 * depend on the rows beside it.
 *
 * The two inner loops are functions of their own: inlined into the rest, gcc spills their
 * accumulators. */

#define VECS (RDU_KV_BLOCK / VEC)

struct row {
    const float *q;
    float *m, *l, *o;
    uint32_t pos_from, pos_to;
};

struct range {
    uint32_t from, to; /* slots of a block; from >= to: nothing visible */
};

/* Softmax pieces of R rows over one block. */
struct piece {
    float p[ROWS_MAX][RDU_KV_BLOCK];
    float keep[ROWS_MAX], take[ROWS_MAX]; /* factors of the old state and of this block */
    struct range visible[ROWS_MAX], common, any;
};

X86_INLINE size_t kv_bytes(enum rdu_kv_type type)
{
    return type == RDU_KV_F32 ? 4 : type == RDU_KV_F16 ? 2 : 1;
}

/* Dimensions that share the scales of Q8_0. */
#define KV_RUN 32

/* Scales of the keys of run `run`, 32 positions; `block` is the whole block. */
X86_INLINE const uint8_t *key_scales(const uint8_t *block, uint32_t head_dim, uint32_t run)
{
    return block + (size_t)2 * RDU_KV_BLOCK * head_dim +
           (size_t)run * RDU_KV_BLOCK * sizeof(uint16_t);
}

/* Scales of the values of position t, one per run; `v` are the values of the block. */
X86_INLINE const uint8_t *value_scales(const uint8_t *v, uint32_t head_dim, uint32_t t)
{
    size_t runs = (head_dim + KV_RUN - 1) / KV_RUN;
    return v + (size_t)RDU_KV_BLOCK * head_dim + (RDU_KV_BLOCK + t) * runs * sizeof(uint16_t);
}

X86_INLINE vec load_keys(enum rdu_kv_type type, const uint8_t *p, vec scale)
{
    return type == RDU_KV_Q8_0 ? vec_mul(scale, load_kv(type, p)) : load_kv(type, p);
}

/* A vector of values from dimension `dim` on: p points at them, `scales` as above. */
X86_INLINE vec load_values(enum rdu_kv_type type, const uint8_t *p, const uint8_t *scales,
                           uint32_t dim)
{
    if (type != RDU_KV_Q8_0)
        return load_kv(type, p);
    return vec_mul(vec_set1(load_one(RDU_KV_F16, scales + dim / KV_RUN * sizeof(uint16_t))),
                   load_kv(type, p));
}

X86_INLINE struct range visible_slots(const struct row *r, uint32_t block)
{
    const uint32_t first = block * RDU_KV_BLOCK;
    return (struct range){
        .from = r->pos_from > first ? r->pos_from - first : 0,
        .to = r->pos_to > first ? BASE_MIN(r->pos_to - first, (uint32_t)RDU_KV_BLOCK) : 0,
    };
}

/* Step d of `head_dim` through a block that comes next: its line of K, and as much of V. In a long
 * context every block is a jump in memory that hardware prefetch does not foresee. */
X86_INLINE void prefetch_step(enum rdu_kv_type type, const uint8_t *next, uint32_t d)
{
    const size_t bytes = 2 * RDU_KV_BLOCK * kv_bytes(type);
    X86_UNROLL
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)next + d * bytes + i, _MM_HINT_T1);
}

/* Scores of R rows over B blocks, V vectors of positions from vector v0 on: s [B][ROWS_MAX][32].
 * next: as many blocks to fetch meanwhile, or NULL. */
X86_INLINE void scores_part(enum rdu_kv_type type, const unsigned R, const unsigned B,
                            const unsigned V, const unsigned v0, const struct row *rows,
                            uint32_t head_dim, const uint8_t *const *blocks,
                            const uint8_t *const *next, float (*s)[ROWS_MAX][RDU_KV_BLOCK])
{
    const size_t line = RDU_KV_BLOCK * kv_bytes(type), step = VEC * kv_bytes(type);
    const float *q[ROWS_MAX];
    const uint8_t *keys[BLOCKS_MAX];
    vec acc[BLOCKS_MAX][ROWS_MAX][VECS];
    X86_UNROLL
    for (unsigned r = 0; r < R; r++)
        q[r] = rows[r].q;
    X86_UNROLL
    for (unsigned b = 0; b < B; b++) {
        keys[b] = blocks[b] + v0 * step;
        X86_UNROLL
        for (unsigned r = 0; r < R; r++) {
            X86_UNROLL
            for (unsigned v = 0; v < V; v++)
                acc[b][r][v] = vec_zero();
        }
    }
    /* Scales change from run to run; types without are one run. */
    const uint32_t run = type == RDU_KV_Q8_0 ? KV_RUN : head_dim;
    for (uint32_t from = 0; from < head_dim; from += run) {
        const uint32_t to = BASE_MIN(head_dim, from + run);
        vec scale[BLOCKS_MAX * VECS];
        X86_UNROLL
        for (unsigned i = 0; i < B * V; i++) {
            if (type == RDU_KV_Q8_0)
                scale[i] = load_kv(RDU_KV_F16, key_scales(blocks[i / V], head_dim, from / KV_RUN) +
                                                   (v0 + i % V) * VEC * sizeof(uint16_t));
            else
                scale[i] = vec_zero();
        }
        for (uint32_t d = from; d < to; d++) {
            if (next) {
                X86_UNROLL
                for (unsigned b = 0; b < B; b++)
                    prefetch_step(type, next[b], d);
            }
            /* The fewer operands wait in registers, the others pass through one. */
            if (R < B * V) {
                vec in[ROWS_MAX];
                X86_UNROLL
                for (unsigned r = 0; r < R; r++)
                    in[r] = vec_set1(q[r][d]);
                X86_UNROLL
                for (unsigned i = 0; i < B * V; i++) {
                    vec k = load_keys(type, keys[i / V] + d * line + i % V * step, scale[i]);
                    X86_UNROLL
                    for (unsigned r = 0; r < R; r++)
                        acc[i / V][r][i % V] = vec_fma(in[r], k, acc[i / V][r][i % V]);
                }
            } else {
                vec k[BLOCKS_MAX * VECS];
                X86_UNROLL
                for (unsigned i = 0; i < B * V; i++)
                    k[i] = load_keys(type, keys[i / V] + d * line + i % V * step, scale[i]);
                X86_UNROLL
                for (unsigned r = 0; r < R; r++) {
                    vec in = vec_set1(q[r][d]);
                    X86_UNROLL
                    for (unsigned i = 0; i < B * V; i++)
                        acc[i / V][r][i % V] = vec_fma(in, k[i], acc[i / V][r][i % V]);
                }
            }
        }
    }
    X86_UNROLL
    for (unsigned b = 0; b < B; b++) {
        X86_UNROLL
        for (unsigned r = 0; r < R; r++) {
            X86_UNROLL
            for (unsigned v = 0; v < V; v++)
                vec_store(s[b][r] + (v0 + v) * VEC, acc[b][r][v]);
        }
    }
}

X86_INLINE void scores(enum rdu_kv_type type, const unsigned R, const struct row *rows,
                       uint32_t head_dim, const uint8_t *const *blocks, const uint8_t *const *next,
                       float (*s)[ROWS_MAX][RDU_KV_BLOCK])
{
    const unsigned V = score_vecs(R);
    X86_UNROLL
    for (unsigned v0 = 0; v0 < VECS; v0 += V)
        scores_part(type, R, score_blocks(R), V, v0, rows, head_dim, blocks, v0 == 0 ? next : NULL,
                    s);
}

/* Scaled and capped scores of one row in s; returns the lane-wise largest visible ones. */
X86_INLINE vec scale_scores(const struct rdu_attn_args *a, struct range visible, float *s)
{
    vec top = vec_set1(-INFINITY);
    X86_UNROLL
    for (unsigned i = 0; i < VECS; i++) {
        vec v = vec_mul(vec_load(s + i * VEC), vec_set1(a->scale));
        if (a->softcap != 0.0f)
            v = vec_mul(vec_set1(a->softcap), tanh_ps(vec_div(v, vec_set1(a->softcap))));
        vec_store(s + i * VEC, v);
        if (visible.from > 0 || visible.to < RDU_KV_BLOCK)
            v = vec_visible(v, vec_set1(-INFINITY), i * VEC, visible.from, visible.to);
        top = vec_max(v, top); /* NaN: the second operand */
    }
    return top;
}

/* Scores to weights p; returns sum16's lanes. */
X86_INLINE vec soften(const float *s, float max, struct range visible, float *p)
{
    vec v[VECS];
    X86_UNROLL
    for (unsigned i = 0; i < VECS; i++) {
        v[i] = exp_ps(vec_sub(vec_load(s + i * VEC), vec_set1(max)));
        if (visible.from > 0 || visible.to < RDU_KV_BLOCK)
            v[i] = vec_visible(v[i], vec_zero(), i * VEC, visible.from, visible.to);
        vec_store(p + i * VEC, v[i]);
    }
    return vec_fold(v);
}

/* Weights of R rows over one block; updates m and l, leaves the factors for o. Reductions and the
 * exps of the factors are taken for all rows together. */
X86_INLINE void weigh(const unsigned R, const struct rdu_attn_args *a, const struct row *rows,
                      float (*s)[RDU_KV_BLOCK], struct piece *piece)
{
    vec lanes[ROWS_MAX];
    float m_c[ROWS_MAX], sum[ROWS_MAX], max[ROWS_MAX], factor[2 * ROWS_MAX] = {0};
    X86_UNROLL
    for (unsigned r = 0; r < ROWS_MAX; r++)
        lanes[r] = r < R ? scale_scores(a, piece->visible[r], s[r]) : lanes[0];
    max_lanes(lanes, m_c);
    X86_UNROLL
    for (unsigned r = 0; r < ROWS_MAX; r++)
        lanes[r] = r < R ? soften(s[r], m_c[r], piece->visible[r], piece->p[r]) : lanes[0];
    sum_lanes(lanes, sum);
    X86_UNROLL
    for (unsigned r = 0; r < R; r++) {
        float m = *rows[r].m;
        max[r] = m_c[r] > m ? m_c[r] : m;
        factor[2 * r] = m - max[r];
        factor[2 * r + 1] = m_c[r] - max[r];
    }
    exp_pairs(factor);
    X86_UNROLL
    for (unsigned r = 0; r < R; r++) {
        if (piece->visible[r].from >= piece->visible[r].to)
            continue;
        piece->keep[r] = *rows[r].m == -INFINITY ? 0.0f : factor[2 * r];
        piece->take[r] = factor[2 * r + 1];
        *rows[r].l = __builtin_fmaf(*rows[r].l, piece->keep[r], sum[r] * piece->take[r]);
        *rows[r].m = max[r];
    }
}

/* acc += p v for one position that all R rows see. */
X86_INLINE void add_position(enum rdu_kv_type type, const unsigned R, const unsigned D,
                             const struct piece *piece, uint32_t t, const uint8_t *v,
                             const uint8_t *scales, uint32_t dim, vec (*acc)[VALUE_VECS_MAX])
{
    const size_t step = VEC * kv_bytes(type);
    if (R < D) {
        vec p[ROWS_MAX];
        X86_UNROLL
        for (unsigned r = 0; r < R; r++)
            p[r] = vec_set1(piece->p[r][t]);
        X86_UNROLL
        for (unsigned d = 0; d < D; d++) {
            vec in = load_values(type, v + d * step, scales, dim + d * VEC);
            X86_UNROLL
            for (unsigned r = 0; r < R; r++)
                acc[r][d] = vec_fma(p[r], in, acc[r][d]);
        }
    } else {
        vec in[VALUE_VECS_MAX];
        X86_UNROLL
        for (unsigned d = 0; d < D; d++)
            in[d] = load_values(type, v + d * step, scales, dim + d * VEC);
        X86_UNROLL
        for (unsigned r = 0; r < R; r++) {
            vec p = vec_set1(piece->p[r][t]);
            X86_UNROLL
            for (unsigned d = 0; d < D; d++)
                acc[r][d] = vec_fma(p, in[d], acc[r][d]);
        }
    }
}

/* D vectors of o of R rows from dimension `dim` on. Slots that only some rows see are added row by
 * row: zero times what another token stored there might not be zero. */
X86_INLINE void values(enum rdu_kv_type type, const unsigned R, const unsigned D,
                       const struct piece *piece, const struct row *rows, const uint8_t *v,
                       uint32_t head_dim, uint32_t dim)
{
    const size_t step = VEC * kv_bytes(type);
    vec acc[ROWS_MAX][VALUE_VECS_MAX];
    X86_UNROLL
    for (unsigned r = 0; r < R; r++) {
        X86_UNROLL
        for (unsigned d = 0; d < D; d++)
            acc[r][d] = vec_zero();
    }
    uint32_t t = piece->any.from;
    while (t < piece->any.to) {
        for (; t >= piece->common.from && t < piece->common.to; t++) {
            const uint8_t *at = v + ((size_t)t * head_dim + dim) * kv_bytes(type);
            add_position(type, R, D, piece, t, at, value_scales(v, head_dim, t), dim, acc);
        }
        if (t >= piece->any.to)
            break;
        const uint8_t *at = v + ((size_t)t * head_dim + dim) * kv_bytes(type);
        X86_UNROLL
        for (unsigned r = 0; r < R; r++) {
            if (t < piece->visible[r].from || t >= piece->visible[r].to)
                continue;
            X86_UNROLL
            for (unsigned d = 0; d < D; d++)
                acc[r][d] = vec_fma(
                    vec_set1(piece->p[r][t]),
                    load_values(type, at + d * step, value_scales(v, head_dim, t), dim + d * VEC),
                    acc[r][d]);
        }
        t++;
    }
    X86_UNROLL
    for (unsigned r = 0; r < R; r++) {
        if (piece->visible[r].from >= piece->visible[r].to)
            continue;
        vec keep = vec_set1(piece->keep[r]), take = vec_set1(piece->take[r]);
        X86_UNROLL
        for (unsigned d = 0; d < D; d++) {
            float *o = rows[r].o + dim + d * VEC;
            vec_store(o, vec_fma(vec_load(o), keep, vec_mul(acc[r][d], take)));
        }
    }
}

/* Dimensions past the last whole vector. */
static void values_tail(enum rdu_kv_type type, unsigned count, const struct piece *piece,
                        const struct row *rows, const uint8_t *v, uint32_t head_dim, uint32_t dim)
{
    for (unsigned r = 0; r < count; r++) {
        struct range visible = piece->visible[r];
        for (uint32_t d = dim; visible.from < visible.to && d < head_dim; d++) {
            float sum = 0, *o = rows[r].o + d;
            for (uint32_t t = visible.from; t < visible.to; t++) {
                float x = load_one(type, v + ((size_t)t * head_dim + d) * kv_bytes(type));
                if (type == RDU_KV_Q8_0)
                    x = load_one(RDU_KV_F16,
                                 value_scales(v, head_dim, t) + d / KV_RUN * sizeof(uint16_t)) *
                        x;
                sum = __builtin_fmaf(piece->p[r][t], x, sum);
            }
            *o = __builtin_fmaf(*o, piece->keep[r], sum * piece->take[r]);
        }
    }
}

/* Ranges of R rows in a block; false if no row sees any of it. */
X86_INLINE bool block_ranges(const unsigned R, const struct row *rows, uint32_t block,
                             struct piece *piece)
{
    piece->common = (struct range){0, RDU_KV_BLOCK};
    piece->any = (struct range){RDU_KV_BLOCK, 0};
    X86_UNROLL
    for (unsigned r = 0; r < R; r++) {
        struct range v = visible_slots(&rows[r], block);
        piece->visible[r] = v;
        piece->common.from = BASE_MAX(piece->common.from, v.from);
        piece->common.to = BASE_MIN(piece->common.to, v.to);
        if (v.from < v.to) {
            piece->any.from = BASE_MIN(piece->any.from, v.from);
            piece->any.to = BASE_MAX(piece->any.to, v.to);
        }
    }
    return piece->any.from < piece->any.to;
}

/* o of R rows over one block. */
X86_INLINE void all_values(enum rdu_kv_type type, const unsigned R, const struct piece *piece,
                           const struct row *rows, const uint8_t *block, uint32_t n)
{
    const uint8_t *v = block + (size_t)RDU_KV_BLOCK * n * kv_bytes(type);
    const unsigned D = value_vecs(R);
    uint32_t dim = 0;
    for (; dim + D * VEC <= n; dim += D * VEC)
        values(type, R, D, piece, rows, v, n, dim);
    for (; dim + VEC <= n; dim += VEC)
        values(type, R, 1, piece, rows, v, n, dim);
    if (dim < n)
        values_tail(type, R, piece, rows, v, n, dim);
}

typedef void scores_fn(const struct row *rows, uint32_t head_dim, const uint8_t *const *blocks,
                       const uint8_t *const *next, float (*s)[ROWS_MAX][RDU_KV_BLOCK]);
typedef void values_fn(const struct piece *piece, const struct row *rows, const uint8_t *block,
                       uint32_t head_dim);

#define DEFINE_LOOPS(name, type, R)                                                                \
    static __attribute__((noinline)) void scores_##name(                                           \
        const struct row *rows, uint32_t head_dim, const uint8_t *const *blocks,                   \
        const uint8_t *const *next, float(*s)[ROWS_MAX][RDU_KV_BLOCK])                             \
    {                                                                                              \
        scores(type, R, rows, head_dim, blocks, next, s);                                          \
    }                                                                                              \
    static __attribute__((noinline)) void values_##name(const struct piece *piece,                 \
                                                        const struct row *rows,                    \
                                                        const uint8_t *block, uint32_t head_dim)   \
    {                                                                                              \
        all_values(type, R, piece, rows, block, head_dim);                                         \
    }
DEFINE_LOOPS(f16_1, RDU_KV_F16, 1)
DEFINE_LOOPS(f16_2, RDU_KV_F16, 2)
DEFINE_LOOPS(f16_3, RDU_KV_F16, 3)
DEFINE_LOOPS(f16_4, RDU_KV_F16, 4)
DEFINE_LOOPS(f16_6, RDU_KV_F16, 6)
DEFINE_LOOPS(f32_1, RDU_KV_F32, 1)
DEFINE_LOOPS(q8_0_1, RDU_KV_Q8_0, 1)
DEFINE_LOOPS(f32_2, RDU_KV_F32, 2)
DEFINE_LOOPS(q8_0_2, RDU_KV_Q8_0, 2)
DEFINE_LOOPS(f32_3, RDU_KV_F32, 3)
DEFINE_LOOPS(q8_0_3, RDU_KV_Q8_0, 3)
DEFINE_LOOPS(f32_4, RDU_KV_F32, 4)
DEFINE_LOOPS(q8_0_4, RDU_KV_Q8_0, 4)
DEFINE_LOOPS(f32_6, RDU_KV_F32, 6)
DEFINE_LOOPS(q8_0_6, RDU_KV_Q8_0, 6)
#if ROWS_MAX >= 8
DEFINE_LOOPS(f16_8, RDU_KV_F16, 8)
DEFINE_LOOPS(f32_8, RDU_KV_F32, 8)
DEFINE_LOOPS(q8_0_8, RDU_KV_Q8_0, 8)
#endif

/* R rows over blocks [block_from, block_to). Blocks that no row sees are not touched. */
X86_INLINE void attend(const unsigned R, scores_fn *scores_of, values_fn *values_of,
                       const struct rdu_attn_args *a, const struct row *rows, uint32_t block_from,
                       uint32_t block_to)
{
    const unsigned B = score_blocks(R);
    uint32_t b = block_from;
    while (b < block_to) {
        struct piece piece[BLOCKS_MAX];
        _Alignas(64) float s[BLOCKS_MAX][ROWS_MAX][RDU_KV_BLOCK];
        const uint8_t *blocks[BLOCKS_MAX], *next[BLOCKS_MAX];
        unsigned n = 0;
        for (; b < block_to && n < B; b++) {
            blocks[n] = a->block[b];
            if (block_ranges(R, rows, b, &piece[n]))
                n++;
        }
        if (n == 0)
            break;
        for (unsigned i = n; i < B; i++)
            blocks[i] = blocks[0]; /* computed, not used */
        for (unsigned i = 0; i < B; i++)
            next[i] = b + i < block_to ? a->block[b + i] : blocks[0];
        scores_of(rows, a->head_dim, blocks, next, s);
        for (unsigned i = 0; i < n; i++) {
            weigh(R, a, rows, s[i], &piece[i]);
            values_of(&piece[i], rows, blocks[i], a->head_dim);
        }
    }
}

/* Rows of the next batch out of `left`: sizes that exist, no single row left over where it can be
 * avoided. */
static inline unsigned batch_rows(unsigned left)
{
    if (ROWS_MAX >= 8 && left >= 8 && left != 9 && left != 10 && left != 12)
        return 8;
    if (left >= 6 && left != 7)
        return 6;
    return left == 7 ? 4 : left == 5 ? 3 : left;
}

#define ATTEND(R)                                                                                  \
    do {                                                                                           \
        if (type == RDU_KV_F16)                                                                    \
            attend(R, scores_f16_##R, values_f16_##R, a, rows, block_from, block_to);              \
        else if (type == RDU_KV_F32)                                                               \
            attend(R, scores_f32_##R, values_f32_##R, a, rows, block_from, block_to);              \
        else                                                                                       \
            attend(R, scores_q8_0_##R, values_q8_0_##R, a, rows, block_from, block_to);            \
    } while (0)

static void attend_batch(enum rdu_kv_type type, unsigned n, const struct rdu_attn_args *a,
                         const struct row *rows, uint32_t block_from, uint32_t block_to)
{
#if ROWS_MAX >= 8
    if (n == 8)
        ATTEND(8);
#endif
    if (n == 6)
        ATTEND(6);
    else if (n == 4)
        ATTEND(4);
    else if (n == 3)
        ATTEND(3);
    else if (n == 2)
        ATTEND(2);
    else if (n == 1)
        ATTEND(1);
}

static void attn(enum rdu_kv_type type, const struct rdu_attn_args *a, uint32_t count)
{
    const uint32_t heads = a->heads, total = count * heads;
    for (uint32_t i = 0, n; i < total; i += n) {
        struct row rows[ROWS_MAX];
        uint32_t block_from = UINT32_MAX, block_to = 0;
        n = batch_rows(total - i);
        for (uint32_t k = 0; k < n; k++) {
            const struct rdu_attn_args *token = &a[(i + k) / heads];
            uint32_t h = (i + k) % heads;
            rows[k] = (struct row){
                .q = token->q + (size_t)h * a->head_dim,
                .m = token->m + h,
                .l = token->l + h,
                .o = token->o + (size_t)h * a->head_dim,
                .pos_from = BASE_MAX(token->pos_from, token->block_from * RDU_KV_BLOCK),
                .pos_to = BASE_MIN(token->pos_to, token->block_to * RDU_KV_BLOCK),
            };
            block_from = BASE_MIN(block_from, token->block_from);
            block_to = BASE_MAX(block_to, token->block_to);
        }
        attend_batch(type, n, a, rows, block_from, block_to);
    }
}

static void attn_tile_f16(const struct rdu_attn_args *a, uint32_t count)
{
    attn(RDU_KV_F16, a, count);
}

static void attn_tile_f32(const struct rdu_attn_args *a, uint32_t count)
{
    attn(RDU_KV_F32, a, count);
}

static void attn_tile_q8_0(const struct rdu_attn_args *a, uint32_t count)
{
    attn(RDU_KV_Q8_0, a, count);
}
