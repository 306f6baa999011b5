/* Attention leaves: every instruction set against the reference bit for bit, any split of the
 * context, a double oracle, and memory of invisible positions that must never matter. */
#include "tests/unit/rdu/kernels_util.h"

struct setup {
    enum rdu_kv_type type;
    uint32_t heads, head_dim, blocks, pos_from, pos_to;
    float softcap;
};

struct context {
    struct setup s;
    float *q, *k, *v; /* k, v [blocks * 32, head_dim] as given, before rounding */
    void **block;
    float *m, *l, *o;
};

static size_t block_bytes(const struct setup *s)
{
    return rdu_kv_block_bytes(s->type, s->head_dim);
}

/* Only visible positions are written; the rest of each block is NaN or infinity. */
static void context_init(struct context *c, struct rng *r, const struct rdu_kernels *k,
                         struct setup s)
{
    size_t positions = (size_t)s.blocks * RDU_KV_BLOCK;
    *c = (struct context){.s = s};
    c->q = mem_array((size_t)s.heads * s.head_dim, sizeof *c->q);
    c->k = mem_array(positions * s.head_dim, sizeof *c->k);
    c->v = mem_array(positions * s.head_dim, sizeof *c->v);
    c->block = mem_array(s.blocks, sizeof *c->block);
    c->m = mem_array(s.heads, sizeof *c->m);
    c->l = mem_array(s.heads, sizeof *c->l);
    c->o = mem_array((size_t)s.heads * s.head_dim, sizeof *c->o);
    for (size_t i = 0; i < (size_t)s.heads * s.head_dim; i++)
        c->q[i] = util_unit(r) * 3;
    for (size_t i = 0; i < positions * s.head_dim; i++) {
        c->k[i] = util_unit(r) * (rng_below(r, 50) == 0 ? 1e-7f : 2.0f);
        c->v[i] = util_unit(r) * (rng_below(r, 50) == 0 ? 1e-7f : 2.0f);
    }
    for (uint32_t b = 0; b < s.blocks; b++) {
        c->block[b] = mem_alloc(block_bytes(&s));
        memset(c->block[b], b % 2 ? 0xff : 0x7c, block_bytes(&s));
        for (uint32_t t = 0; t < RDU_KV_BLOCK; t++) {
            uint32_t pos = b * RDU_KV_BLOCK + t;
            if (pos >= s.pos_from && pos < s.pos_to)
                k->kv_store[s.type](c->block[b], t, s.head_dim, c->k + (size_t)pos * s.head_dim,
                                    c->v + (size_t)pos * s.head_dim);
        }
    }
}

static void context_done(struct context *c)
{
    for (uint32_t b = 0; b < c->s.blocks; b++)
        free(c->block[b]);
    free(c->q);
    free(c->k);
    free(c->v);
    free(c->block);
    free(c->m);
    free(c->l);
    free(c->o);
}

static void attend(const struct rdu_kernels *k, struct context *c, const uint32_t *cuts, unsigned n)
{
    for (uint32_t h = 0; h < c->s.heads; h++) {
        c->m[h] = -INFINITY;
        c->l[h] = 0;
    }
    memset(c->o, 0, (size_t)c->s.heads * c->s.head_dim * sizeof *c->o);
    for (unsigned i = 0; i + 1 < n; i++) {
        struct rdu_attn_args a = {
            .q = c->q,
            .block = (const void *const *)c->block,
            .heads = c->s.heads,
            .head_dim = c->s.head_dim,
            .block_from = cuts[i],
            .block_to = cuts[i + 1],
            .pos_from = c->s.pos_from,
            .pos_to = c->s.pos_to,
            .scale = 0.125f,
            .softcap = c->s.softcap,
            .m = c->m,
            .l = c->l,
            .o = c->o,
        };
        k->attn[c->s.type](&a);
    }
}

struct result {
    float *m, *l, *o;
};

static struct result keep(const struct context *c)
{
    size_t heads = c->s.heads, n = heads * c->s.head_dim;
    struct result r = {mem_array(heads, sizeof(float)), mem_array(heads, sizeof(float)),
                       mem_array(n, sizeof(float))};
    memcpy(r.m, c->m, heads * sizeof(float));
    memcpy(r.l, c->l, heads * sizeof(float));
    memcpy(r.o, c->o, n * sizeof(float));
    return r;
}

static void expect_same(const struct context *c, const struct result *want, const char *what)
{
    for (uint32_t h = 0; h < c->s.heads; h++) {
        bool same = util_same(c->m[h], want->m[h]) && util_same(c->l[h], want->l[h]);
        for (uint32_t d = 0; same && d < c->s.head_dim; d++)
            same = util_same(c->o[(size_t)h * c->s.head_dim + d],
                             want->o[(size_t)h * c->s.head_dim + d]);
        if (!same)
            fail_msg(
                "%s type %d heads %u dim %u visible %u..%u softcap %g seed %llu: head %u differs",
                what, c->s.type, c->s.heads, c->s.head_dim, c->s.pos_from, c->s.pos_to,
                (double)c->s.softcap, (unsigned long long)util_seed(), h);
    }
}

static void result_done(struct result *r)
{
    free(r->m);
    free(r->l);
    free(r->o);
}

static struct setup random_setup(struct rng *r)
{
    static const uint32_t dims[] = {1, 7, 8, 16, 24, 40, 64, 72, 80, 96, 128, 131, 256};
    struct setup s = {
        .type = (enum rdu_kv_type)rng_below(r, RDU_KV_TYPES),
        .heads = 1 + (uint32_t)rng_below(r, 9),
        .head_dim = dims[rng_below(r, BASE_COUNT(dims))],
        .blocks = 1 + (uint32_t)rng_below(r, 11),
        .softcap = rng_below(r, 3) == 0 ? 5.0f : 0.0f,
    };
    s.pos_to = 1 + (uint32_t)rng_below(r, s.blocks * RDU_KV_BLOCK);
    s.pos_from = rng_below(r, 2) ? 0 : (uint32_t)rng_below(r, s.pos_to);
    return s;
}

static void every_isa_gives_the_reference_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 20);
    for (unsigned round = 0; round < 200; round++) {
        struct context c;
        context_init(&c, &r, &t->k[0], random_setup(&r));
        const uint32_t whole[2] = {0, c.s.blocks};
        attend(&t->k[0], &c, whole, 2);
        struct result want = keep(&c);
        for (unsigned i = 1; i < t->count; i++) {
            attend(&t->k[i], &c, whole, 2);
            expect_same(&c, &want, t->name[i]);
        }
        result_done(&want);
        context_done(&c);
    }
}

static void any_split_of_the_context_gives_the_same_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 21);
    for (unsigned round = 0; round < 60; round++) {
        struct context c;
        context_init(&c, &r, &t->k[0], random_setup(&r));
        for (unsigned i = 1; i < t->count; i++) {
            const uint32_t whole[2] = {0, c.s.blocks};
            attend(&t->k[i], &c, whole, 2);
            struct result want = keep(&c);
            uint32_t cuts[16] = {0};
            unsigned n = 1;
            for (uint32_t b = 1; b < c.s.blocks; b++)
                if (rng_below(&r, 2))
                    cuts[n++] = b;
            cuts[n++] = c.s.blocks;
            attend(&t->k[i], &c, cuts, n);
            expect_same(&c, &want, "split");
            result_done(&want);
        }
        context_done(&c);
    }
}

/* Tokens of a step see different parts of the same pages; one of them has infinite values in V that
 * the earlier ones must not notice. */
static void a_tile_of_tokens_gives_the_bits_of_single_tokens(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 25);
    for (unsigned round = 0; round < 150; round++) {
        enum { TOKENS = 9 };
        struct setup s = random_setup(&r);
        struct context c;
        s.pos_from = 0;
        context_init(&c, &r, &t->k[0], s);
        uint32_t count = 1 + (uint32_t)rng_below(&r, TOKENS), last = s.pos_to - 1;
        size_t width = (size_t)s.heads * s.head_dim;
        if (s.type == RDU_KV_F32) /* the last position, seen by the last token only */
            ((float *)c.block[last / 32])[(size_t)(32 + last % 32) * s.head_dim] = INFINITY;
        float *q = mem_array(count * width, sizeof *q);
        float *m[2], *l[2], *o[2];
        for (unsigned i = 0; i < 2; i++) {
            m[i] = mem_array((size_t)count * s.heads, sizeof(float));
            l[i] = mem_array((size_t)count * s.heads, sizeof(float));
            o[i] = mem_array(count * width, sizeof(float));
        }
        for (size_t i = 0; i < count * width; i++)
            q[i] = util_unit(&r) * 3;
        struct rdu_attn_args a[2][TOKENS];
        for (uint32_t i = 0; i < count; i++) {
            uint32_t back = count - 1 - i, to = s.pos_to > back ? s.pos_to - back : 1;
            uint32_t from = round % 3 == 0 && to > 20 ? to - 20 : 0; /* a window */
            uint32_t block_from = round % 5 == 0 ? from / 32 : 0;
            for (unsigned k = 0; k < 2; k++)
                a[k][i] = (struct rdu_attn_args){
                    .q = q + i * width,
                    .block = (const void *const *)c.block,
                    .heads = s.heads,
                    .head_dim = s.head_dim,
                    .block_from = block_from,
                    .block_to = (to + 31) / 32,
                    .pos_from = from,
                    .pos_to = to,
                    .scale = 0.125f,
                    .softcap = s.softcap,
                    .m = m[k] + i * s.heads,
                    .l = l[k] + i * s.heads,
                    .o = o[k] + i * width,
                };
        }
        for (unsigned k = 0; k < t->count; k++) {
            for (unsigned i = 0; i < 2; i++) {
                for (uint32_t h = 0; h < count * s.heads; h++) {
                    m[i][h] = -INFINITY;
                    l[i][h] = 0;
                }
                memset(o[i], 0, count * width * sizeof(float));
            }
            for (uint32_t i = 0; i < count; i++)
                t->k[0].attn[s.type](&a[0][i]);
            t->k[k].attn_tile[s.type](a[1], count);
            for (uint32_t h = 0; h < count * s.heads; h++)
                assert_true(util_same(m[0][h], m[1][h]) && util_same(l[0][h], l[1][h]));
            for (size_t i = 0; i < count * width; i++)
                if (!util_same(o[0][i], o[1][i]))
                    fail_msg(
                        "%s tokens %u heads %u dim %u positions %u seed %llu: token %zu differs",
                        t->name[k], count, s.heads, s.head_dim, s.pos_to,
                        (unsigned long long)util_seed(), i / width);
        }
        for (unsigned i = 0; i < 2; i++) {
            free(m[i]);
            free(l[i]);
            free(o[i]);
        }
        free(q);
        context_done(&c);
    }
}

/* As it was stored: element d of n. */
static double stored(enum rdu_kv_type type, const float *x, uint32_t n, uint32_t d)
{
    if (type == RDU_KV_F32)
        return (double)x[d];
    if (type == RDU_KV_F16)
        return (double)rdu_f16_to_f32(rdu_f32_to_f16(x[d]));
    float amax = 0;
    for (uint32_t i = d / 32 * 32; i < BASE_MIN(n, d / 32 * 32 + 32); i++)
        amax = fmaxf(amax, fabsf(x[i]));
    float scale = rdu_f16_to_f32(rdu_f32_to_f16(amax / 127.0f));
    return scale > 0 ? (double)scale * (double)rintf(x[d] * (1.0f / scale)) : 0;
}

/* Softmax attention in double; fills o [head_dim]. */
static void oracle(const struct context *c, uint32_t head, double *p, double *o)
{
    const uint32_t n = c->s.head_dim;
    double max = (double)-INFINITY, sum = 0;
    for (uint32_t t = c->s.pos_from; t < c->s.pos_to; t++) {
        double s = 0;
        for (uint32_t d = 0; d < n; d++)
            s += (double)c->q[(size_t)head * n + d] * stored(c->s.type, c->k + (size_t)t * n, n, d);
        s *= 0.125;
        if (c->s.softcap != 0.0f)
            s = (double)c->s.softcap * tanh(s / (double)c->s.softcap);
        p[t] = s;
        max = fmax(max, s);
    }
    for (uint32_t t = c->s.pos_from; t < c->s.pos_to; t++)
        sum += p[t] = exp(p[t] - max);
    for (uint32_t d = 0; d < n; d++) {
        o[d] = 0;
        for (uint32_t t = c->s.pos_from; t < c->s.pos_to; t++)
            o[d] += p[t] / sum * stored(c->s.type, c->v + (size_t)t * n, n, d);
    }
}

static void reference_is_close_to_double(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 22);
    for (unsigned round = 0; round < 60; round++) {
        struct context c;
        context_init(&c, &r, &t->k[0], random_setup(&r));
        const uint32_t whole[2] = {0, c.s.blocks};
        attend(&t->k[0], &c, whole, 2);
        double *p = mem_array((size_t)c.s.blocks * RDU_KV_BLOCK, sizeof *p);
        double *o = mem_array(c.s.head_dim, sizeof *o);
        for (uint32_t h = 0; h < c.s.heads; h++) {
            oracle(&c, h, p, o);
            /* A score errs by (head_dim + 8) half-ulps of the sum of |q k| <= 6 head_dim / 8, a
             * weight by that much relatively, the average (|v| <= 2) by twice a weight's error plus
             * the roundings of up to 11 merges of 32 products. */
            double n = c.s.head_dim, score = (n + 8) * 0x1p-24 * (6 * n / 8 + 1);
            double bound = 2 * (2 * score + (32 + 11 * 6) * 0x1p-24);
            for (uint32_t d = 0; d < c.s.head_dim; d++) {
                double got = (double)(c.o[(size_t)h * c.s.head_dim + d] / c.l[h]);
                if (!(fabs(got - o[d]) <= bound))
                    fail_msg("head %u dim %u: %g, in double %g (bound %g)", h, d, got, o[d], bound);
            }
        }
        free(p);
        free(o);
        context_done(&c);
    }
}

static void invisible_memory_never_matters(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 23);
    for (unsigned round = 0; round < 40; round++) {
        struct setup s = random_setup(&r);
        struct context c;
        context_init(&c, &r, &t->k[0], s);
        const uint32_t whole[2] = {0, s.blocks};
        for (unsigned i = 0; i < t->count; i++) {
            attend(&t->k[i], &c, whole, 2);
            struct result want = keep(&c);
            for (size_t k = 0; k < (size_t)s.heads * s.head_dim; k++)
                assert_true(isfinite(want.o[k]));
            /* The same with zeros there instead of NaN and infinity. */
            struct context zeros = c;
            zeros.block = mem_array(s.blocks, sizeof *zeros.block);
            for (uint32_t b = 0; b < s.blocks; b++) {
                zeros.block[b] = mem_alloc(block_bytes(&s));
                for (uint32_t p = 0; p < RDU_KV_BLOCK; p++) {
                    uint32_t pos = b * RDU_KV_BLOCK + p;
                    if (pos >= s.pos_from && pos < s.pos_to)
                        t->k[0].kv_store[s.type](zeros.block[b], p, s.head_dim,
                                                 c.k + (size_t)pos * s.head_dim,
                                                 c.v + (size_t)pos * s.head_dim);
                }
            }
            attend(&t->k[i], &zeros, whole, 2);
            expect_same(&zeros, &want, t->name[i]);
            for (uint32_t b = 0; b < s.blocks; b++)
                free(zeros.block[b]);
            free(zeros.block);
            result_done(&want);
        }
        context_done(&c);
    }
}

static void storing_writes_one_slot_and_rounds(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 24);
    for (uint32_t n = 1; n < 40; n += 3) {
        float k[40], v[40];
        for (uint32_t i = 0; i < n; i++) {
            k[i] = util_wide(&r);
            v[i] = i == 0 ? 1e30f : util_wide(&r);
        }
        size_t bytes = 2 * (size_t)RDU_KV_BLOCK * n * sizeof(uint16_t);
        uint16_t *want = mem_alloc(bytes), *got = mem_alloc(bytes);
        for (unsigned i = 0; i < t->count; i++) {
            uint32_t slot = (uint32_t)rng_below(&r, RDU_KV_BLOCK);
            memset(want, 0x5a, bytes);
            memset(got, 0x5a, bytes);
            for (uint32_t d = 0; d < n; d++) {
                want[d * RDU_KV_BLOCK + slot] = rdu_f32_to_f16(k[d]);
                want[n * RDU_KV_BLOCK + slot * n + d] = rdu_f32_to_f16(v[d]);
            }
            t->k[i].kv_store[RDU_KV_F16](got, slot, n, k, v);
            assert_memory_equal(want, got, bytes);
        }
        free(want);
        free(got);
    }
}

static void eight_bits_are_within_half_a_step(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 26);
    for (uint32_t n = 1; n < 100; n += 7) {
        float k[100], v[100];
        int8_t *block = mem_alloc(rdu_kv_block_bytes(RDU_KV_Q8_0, n));
        const uint16_t *k_scale = (const uint16_t *)(void *)(block + 64 * (size_t)n);
        for (uint32_t i = 0; i < n; i++) {
            k[i] = util_wide(&r);
            v[i] = i == n / 2 ? NAN : 1e30f;
        }
        uint32_t slot = (uint32_t)rng_below(&r, RDU_KV_BLOCK);
        for (unsigned i = 0; i < t->count; i++) {
            t->k[i].kv_store[RDU_KV_Q8_0](block, slot, n, k, v);
            for (uint32_t d = 0; d < n; d++) {
                float amax = 0;
                for (uint32_t x = d / 32 * 32; x < BASE_MIN(n, d / 32 * 32 + 32); x++)
                    amax = fmaxf(amax, fabsf(k[x]));
                float scale = rdu_f16_to_f32(k_scale[d / 32 * 32 + slot]);
                float got = scale * (float)block[d * 32 + slot];
                /* Half a step, half an ulp of f16 over 127 steps, and what f16 cannot show. */
                assert_true(fabsf(got - k[d]) <= amax * (0.51f / 127 + 0x1p-11f) + 127 * 0x1p-24f);
                int8_t value = block[32 * n + slot * n + d];
                assert_int_equal(value, d == n / 2 ? 0 : 127); /* not a number, and too large */
            }
        }
        free(block);
    }
}

int main(void)
{
    struct util_tables tables;
    util_tables_init(&tables);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(every_isa_gives_the_reference_bits, &tables),
        cmocka_unit_test_prestate(any_split_of_the_context_gives_the_same_bits, &tables),
        cmocka_unit_test_prestate(a_tile_of_tokens_gives_the_bits_of_single_tokens, &tables),
        cmocka_unit_test_prestate(reference_is_close_to_double, &tables),
        cmocka_unit_test_prestate(invisible_memory_never_matters, &tables),
        cmocka_unit_test_prestate(storing_writes_one_slot_and_rounds, &tables),
        cmocka_unit_test_prestate(eight_bits_are_within_half_a_step, &tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
