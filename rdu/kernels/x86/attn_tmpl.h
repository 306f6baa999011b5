/* Attention of one token, rule 9 of rdu/README.md, for both x86 instruction sets. The includer defines
 *   vec, VEC (lanes), HEADS_MAX (heads that share one pass over K), DIMS (vectors of o per pass over V),
 *   vec_zero, vec_set1, vec_load, vec_store, vec_mul, vec_div, vec_fma, vec_max (a > b ? a : b),
 *   vec_visible(v, fill, base, from, to): lanes base + i outside [from, to) replaced by `fill`,
 *   load_kv(type, p), sum_slots(p), max_lane(v), and exp_ps, tanh_ps.
 *
 * Scores: positions in the lanes, one fused multiply-add per (dimension, head, vector) with q
 * broadcast; heads of one kv head share the loaded K. Values: dimensions in the lanes, only visible
 * positions are read. Lanes of invisible positions are computed from whatever memory holds and then
 * replaced, so it never matters. */

#define VECS (RDU_KV_BLOCK / VEC)

X86_INLINE size_t kv_bytes(enum rdu_kv_type type)
{
    return type == RDU_KV_F32 ? 4 : 2;
}

/* Softmax pieces of one head over one block. */
struct piece {
    float p[RDU_KV_BLOCK];
    float keep, take; /* factors of the old state and of this block */
};

/* Scores of H heads over one block: s [H][32]. */
X86_INLINE void scores(enum rdu_kv_type type, const unsigned H, const float *q, uint32_t head_dim,
                       const uint8_t *keys, vec (*s)[VECS])
{
    const size_t row = RDU_KV_BLOCK * kv_bytes(type), step = VEC * kv_bytes(type);
    vec acc[HEADS_MAX][VECS];
    X86_UNROLL
    for (unsigned h = 0; h < H; h++)
        X86_UNROLL
        for (unsigned v = 0; v < VECS; v++)
            acc[h][v] = vec_zero();
    for (uint32_t d = 0; d < head_dim; d++) {
        vec k[VECS];
        X86_UNROLL
        for (unsigned v = 0; v < VECS; v++)
            k[v] = load_kv(type, keys + d * row + v * step);
        X86_UNROLL
        for (unsigned h = 0; h < H; h++) {
            vec in = vec_set1(q[h * head_dim + d]);
            X86_UNROLL
            for (unsigned v = 0; v < VECS; v++)
                acc[h][v] = vec_fma(in, k[v], acc[h][v]);
        }
    }
    X86_UNROLL
    for (unsigned h = 0; h < H; h++)
        X86_UNROLL
        for (unsigned v = 0; v < VECS; v++)
            s[h][v] = acc[h][v];
}

/* Scores to weights of one head; updates m and l. */
X86_INLINE void soften(const struct rdu_attn_args *a, uint32_t head, uint32_t from, uint32_t to,
                       vec *s, struct piece *ret)
{
    vec top = vec_set1(-INFINITY);
    X86_UNROLL
    for (unsigned v = 0; v < VECS; v++) {
        s[v] = vec_mul(s[v], vec_set1(a->scale));
        if (a->softcap != 0.0f)
            s[v] = vec_mul(vec_set1(a->softcap), tanh_ps(vec_div(s[v], vec_set1(a->softcap))));
        /* NaN: the second operand */
        top = vec_max(vec_visible(s[v], vec_set1(-INFINITY), v * VEC, from, to), top);
    }
    float m_c = max_lane(top);
    vec p[VECS];
    X86_UNROLL
    for (unsigned v = 0; v < VECS; v++) {
        p[v] = vec_visible(exp_ps(vec_sub(s[v], vec_set1(m_c))), vec_zero(), v * VEC, from, to);
        vec_store(ret->p + v * VEC, p[v]);
    }
    float l_c = sum_slots(p), m = a->m[head], max = m_c > m ? m_c : m;
    ret->keep = m == -INFINITY ? 0.0f : rdu_expf(m - max);
    ret->take = rdu_expf(m_c - max);
    a->l[head] = __builtin_fmaf(a->l[head], ret->keep, l_c * ret->take);
    a->m[head] = max;
}

/* D vectors of o of H heads from dimension `dim` on. */
X86_INLINE void values(enum rdu_kv_type type, const unsigned H, const unsigned D,
                       const struct piece *piece, const uint8_t *v, uint32_t head_dim, uint32_t dim,
                       uint32_t from, uint32_t to, float *o)
{
    vec acc[HEADS_MAX][DIMS];
    X86_UNROLL
    for (unsigned h = 0; h < H; h++)
        X86_UNROLL
        for (unsigned d = 0; d < D; d++)
            acc[h][d] = vec_zero();
    for (uint32_t t = from; t < to; t++) {
        const uint8_t *row = v + ((size_t)t * head_dim + dim) * kv_bytes(type);
        vec in[DIMS];
        X86_UNROLL
        for (unsigned d = 0; d < D; d++)
            in[d] = load_kv(type, row + d * VEC * kv_bytes(type));
        X86_UNROLL
        for (unsigned h = 0; h < H; h++) {
            vec p = vec_set1(piece[h].p[t]);
            X86_UNROLL
            for (unsigned d = 0; d < D; d++)
                acc[h][d] = vec_fma(p, in[d], acc[h][d]);
        }
    }
    X86_UNROLL
    for (unsigned h = 0; h < H; h++) {
        vec keep = vec_set1(piece[h].keep), take = vec_set1(piece[h].take);
        X86_UNROLL
        for (unsigned d = 0; d < D; d++) {
            float *at = o + (size_t)h * head_dim + dim + d * VEC;
            vec_store(at, vec_fma(vec_load(at), keep, vec_mul(acc[h][d], take)));
        }
    }
}

/* Dimensions past the last whole vector. */
static void values_tail(enum rdu_kv_type type, unsigned heads, const struct piece *piece,
                        const uint8_t *v, uint32_t head_dim, uint32_t dim, uint32_t from,
                        uint32_t to, float *o)
{
    for (unsigned h = 0; h < heads; h++) {
        for (uint32_t d = dim; d < head_dim; d++) {
            float sum = 0, *at = o + (size_t)h * head_dim + d;
            for (uint32_t t = from; t < to; t++) {
                size_t i = (size_t)t * head_dim + d;
                float x = type == RDU_KV_F32 ? ((const float *)v)[i]
                                             : _cvtsh_ss(((const uint16_t *)v)[i]);
                sum = __builtin_fmaf(piece[h].p[t], x, sum);
            }
            *at = __builtin_fmaf(*at, piece[h].keep, sum * piece[h].take);
        }
    }
}

X86_INLINE void attend_block(enum rdu_kv_type type, const unsigned H, const struct rdu_attn_args *a,
                             uint32_t head, const uint8_t *block, uint32_t from, uint32_t to)
{
    const uint32_t n = a->head_dim;
    const uint8_t *v = block + (size_t)RDU_KV_BLOCK * n * kv_bytes(type);
    float *o = a->o + (size_t)head * n;
    vec s[HEADS_MAX][VECS];
    struct piece piece[HEADS_MAX];
    scores(type, H, a->q + (size_t)head * n, n, block, s);
    X86_UNROLL
    for (unsigned h = 0; h < H; h++)
        soften(a, head + h, from, to, s[h], &piece[h]);
    uint32_t dim = 0;
    for (; dim + DIMS * VEC <= n; dim += DIMS * VEC)
        values(type, H, DIMS, piece, v, n, dim, from, to, o);
    for (; dim + VEC <= n; dim += VEC)
        values(type, H, 1, piece, v, n, dim, from, to, o);
    if (dim < n)
        values_tail(type, H, piece, v, n, dim, from, to, o);
}

X86_INLINE void attend(enum rdu_kv_type type, const unsigned H, const struct rdu_attn_args *a,
                       uint32_t head)
{
    for (uint32_t b = a->block_from; b < a->block_to; b++) {
        uint32_t first = b * RDU_KV_BLOCK;
        uint32_t from = a->pos_from > first ? a->pos_from - first : 0;
        uint32_t to = a->pos_to > first ? BASE_MIN(a->pos_to - first, (uint32_t)RDU_KV_BLOCK) : 0;
        if (from < to)
            attend_block(type, H, a, head, a->block[b], from, to);
    }
}

X86_INLINE void attn(enum rdu_kv_type type, const struct rdu_attn_args *a)
{
    uint32_t h = 0;
    while (h < a->heads) {
        uint32_t left = a->heads - h;
        if (left >= HEADS_MAX) {
            attend(type, HEADS_MAX, a, h);
            h += HEADS_MAX;
        } else if (left == 3) {
            attend(type, 3, a, h);
            h += 3;
        } else if (left == 2) {
            attend(type, 2, a, h);
            h += 2;
        } else {
            attend(type, 1, a, h);
            h += 1;
        }
    }
}

static void attn_f16(const struct rdu_attn_args *a)
{
    attn(RDU_KV_F16, a);
}

static void attn_f32(const struct rdu_attn_args *a)
{
    attn(RDU_KV_F32, a);
}
