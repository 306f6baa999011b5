/* What the tests of the leaves share: tables of every instruction set this machine has, random
 * weights and activations with nasty values, output buffers with guards, comparison of bits. */
#ifndef SWITCHYARD_TESTS_KERNELS_UTIL_H
#define SWITCHYARD_TESTS_KERNELS_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rdu/kernels/half.h"
#include "rdu/kernels/pack.h"
#include "rdu/kernels/ref/ref.h"

/* Table 0 is the scalar reference compiled for the baseline; every other one must agree with it. */
#define UTIL_TABLES_MAX 4
struct util_tables {
    struct rdu_kernels k[UTIL_TABLES_MAX];
    const char *name[UTIL_TABLES_MAX];
    unsigned count;
};

static inline void util_tables_init(struct util_tables *t)
{
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    memset(t, 0, sizeof *t);
    rdu_ref_mm_q8_base(&t->k[0]);
    rdu_ref_mm_f32_base(&t->k[0]);
    rdu_ref_attn_base(&t->k[0]);
    rdu_ref_rows_base(&t->k[0]);
    t->name[t->count++] = "baseline";
    for (unsigned i = 0; i < BASE_COUNT(names); i++) {
        struct err e;
        enum err_code rc = rdu_kernels_init(&t->k[t->count], names[i], &e);
        if (rc == ERR_OK)
            t->name[t->count++] = names[i];
        else
            assert_int_equal(rc, ERR_UNSUPPORTED);
    }
}

static inline uint64_t util_seed(void)
{
    const char *s = getenv("SWITCHYARD_TEST_SEED");
    return s != NULL ? strtoull(s, NULL, 0) : 20240517;
}

/* Uniform in [-1, 1). */
static inline float util_unit(struct rng *r)
{
    return (float)(rng_f64(r) * 2 - 1);
}

/* Magnitudes from subnormal to large, zeros of both signs. */
static inline float util_wide(struct rng *r)
{
    if (rng_below(r, 16) == 0)
        return rng_below(r, 2) ? 0.0f : -0.0f;
    return ldexpf(util_unit(r), (int)rng_below(r, 40) - 20) *
           (rng_below(r, 64) == 0 ? 0x1p-120f : 1.0f);
}

/* f16 scale: mostly small and normal, some subnormal, zero, negative; `wild` adds infinities and
 * NaN. */
static inline uint16_t util_scale(struct rng *r, bool wild)
{
    uint16_t sign = (uint16_t)(rng_below(r, 2) << 15);
    uint64_t kind = rng_below(r, 64);
    if (wild && kind == 0)
        return (uint16_t)(sign | 0x7c00u | (rng_below(r, 2) ? 0x155u : 0));
    if (kind < 3)
        return (uint16_t)(sign | rng_below(r, 0x400));
    return (uint16_t)(sign | (6 + rng_below(r, 8)) << 10 | rng_below(r, 0x400));
}

/* Random raw rows of any type. */
static inline uint8_t *util_raw_rows(struct rng *r, enum rdu_type type, size_t rows, size_t cols,
                                     bool wild)
{
    static const int16_t scale_at[RDU_TYPES][2] = {
        [RDU_Q4_0] = {0, -1},   [RDU_Q4_1] = {0, 2},    [RDU_Q5_0] = {0, -1},
        [RDU_Q5_1] = {0, 2},    [RDU_Q8_0] = {0, -1},   [RDU_Q2_K] = {80, 82},
        [RDU_Q3_K] = {108, -1}, [RDU_Q4_K] = {0, 2},    [RDU_Q5_K] = {0, 2},
        [RDU_Q6_K] = {208, -1}, [RDU_IQ1_S] = {0, -1},  [RDU_IQ2_XXS] = {0, -1},
        [RDU_IQ2_XS] = {0, -1}, [RDU_IQ2_S] = {0, -1},  [RDU_IQ3_XXS] = {0, -1},
        [RDU_IQ3_S] = {0, -1},  [RDU_IQ4_NL] = {0, -1}, [RDU_IQ4_XS] = {0, -1},
        [RDU_TQ1_0] = {52, -1}, [RDU_TQ2_0] = {64, -1},
    };
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t blocks = rows * (cols / info->block_elems), bytes = blocks * info->block_bytes;
    uint8_t *raw = mem_alloc(bytes + 1);
    for (size_t i = 0; i < bytes; i++)
        raw[i] = (uint8_t)rng_u64(r);
    for (size_t b = 0; b < blocks; b++) {
        uint8_t *at = raw + b * info->block_bytes;
        if (info->is_float) {
            float v = util_wide(r);
            uint16_t h = type == RDU_F16 ? util_scale(r, wild) : rdu_bf16_store(v);
            memcpy(at, type == RDU_F32 ? (const void *)&v : (const void *)&h, info->block_bytes);
            continue;
        }
        for (unsigned i = 0; i < 2; i++) {
            uint16_t h = util_scale(r, wild);
            if (scale_at[type][i] >= 0)
                memcpy(at + scale_at[type][i], &h, sizeof h);
        }
    }
    return raw;
}

/* `bytes` that end where an unreadable page begins: one byte read too far is a crash. The address
 * is aligned as far as the size is. */
struct util_fenced {
    void *map;
    size_t map_bytes;
    void *data;
};

static inline struct util_fenced util_fenced_open(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    struct util_fenced f = {.map_bytes = whole + page};
    f.map = mmap(NULL, f.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(f.map != MAP_FAILED);
    assert_int_equal(mprotect((uint8_t *)f.map + whole, page, PROT_NONE), 0);
    f.data = (uint8_t *)f.map + whole - bytes;
    return f;
}

static inline void util_fenced_close(struct util_fenced *f)
{
    munmap(f->map, f->map_bytes);
    f->map = NULL;
}

static inline struct util_fenced util_pack(enum rdu_type type, size_t rows, size_t cols,
                                           const uint8_t *raw)
{
    size_t bytes = rdu_pack_bytes(type, rows, cols);
    assert_true(bytes > 0);
    struct util_fenced packed = util_fenced_open(bytes);
    rdu_pack_rows(type, rows, cols, raw, packed.data);
    return packed;
}

/* Bits equal, or both not a number: which NaN comes out of an operation on two is not specified. */
static inline bool util_same(float a, float b)
{
    return rdu_bits_of_float(a) == rdu_bits_of_float(b) || (isnan(a) && isnan(b));
}

/* A buffer of `count` floats between guards. */
struct util_guarded {
    uint8_t *memory;
    float *data;
    size_t count;
};
#define UTIL_GUARD 256

static inline struct util_guarded util_guarded_open(size_t count)
{
    struct util_guarded g = {.count = count};
    g.memory = mem_alloc(count * sizeof(float) + 2 * UTIL_GUARD);
    memset(g.memory, 0xa5, count * sizeof(float) + 2 * UTIL_GUARD);
    g.data = (float *)(void *)(g.memory + UTIL_GUARD);
    return g;
}

static inline bool util_guarded_intact(const struct util_guarded *g)
{
    const uint8_t *after = g->memory + UTIL_GUARD + g->count * sizeof(float);
    for (unsigned i = 0; i < UTIL_GUARD; i++)
        if (g->memory[i] != 0xa5 || after[i] != 0xa5)
            return false;
    return true;
}

static inline void util_guarded_close(struct util_guarded *g)
{
    free(g->memory);
    g->memory = NULL;
}

/* int8 activations of n_tokens rows, quantised from random rows by the reference. */
struct util_q8 {
    struct rdu_q8 x;
    struct util_fenced q, d, s;
};

static inline struct util_q8 util_q8_open(struct rng *r, uint32_t tokens, uint32_t cols)
{
    struct util_q8 u;
    size_t q_stride = ((size_t)cols + 63) / 64 * 64, blocks = (cols + 31) / 32 + 3;
    u.x.q_stride = q_stride;
    u.x.b_stride = blocks;
    /* The last row of scales ends with its last block. */
    u.q = util_fenced_open(tokens * q_stride);
    u.d = util_fenced_open((tokens * blocks - 3) * sizeof(float));
    u.s = util_fenced_open((tokens * blocks - 3) * sizeof(float));
    u.x.q = u.q.data;
    u.x.d = u.d.data;
    u.x.s = u.s.data;
    struct util_tables t;
    util_tables_init(&t);
    float *row = mem_array(cols + 32, sizeof *row);
    for (uint32_t i = 0; i < tokens; i++) {
        float size = rng_below(r, 8) == 0 ? 1e-3f : 1.0f;
        for (uint32_t c = 0; c < cols; c++)
            row[c] = util_unit(r) * size * (rng_below(r, 64) == 0 ? 20.0f : 1.0f);
        if (rng_below(r, 8) == 0)
            memset(row, 0, 32 * sizeof *row); /* a block of zeros: d = 0 */
        t.k[0].quantize(row, cols, u.x.q + i * q_stride, u.x.d + i * blocks, u.x.s + i * blocks);
        if (rng_below(r, 4) == 0)
            for (uint32_t c = 0; c < 32; c++) /* extremes: sums as large as they get */
                u.x.q[i * q_stride + c] = rng_below(r, 2) ? 127 : -127;
    }
    free(row);
    return u;
}

static inline void util_q8_close(struct util_q8 *u)
{
    util_fenced_close(&u->q);
    util_fenced_close(&u->d);
    util_fenced_close(&u->s);
}

#endif
