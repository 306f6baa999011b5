/* The workloads by hand, in C: what generated and interpreted graphs are held against. Compiled
 * twice, for the baseline and for AVX2 (BENCH_HAND_INIT names the entry). */
#include <math.h>
#ifdef __F16C__
#include <immintrin.h>
#endif
#include <string.h>

#include "rdu/bench/work.h"
#include "rdu/kernels/half.h"
#include "rdu/kernels/math.h"

#ifndef BENCH_HAND_INIT
#define BENCH_HAND_INIT bench_hand_base
#endif

/* Inlined with stride 4 known (columns) and with the record's (rows): the two loops a person would
 * write. */
#define AT(type, c, i, stride)                                                                     \
    (*(const type *)(const void *)((const char *)(c).data + (i) * (stride)))
#define BOTH(call_columns, call_rows) (c[0].stride == sizeof(float) ? (call_columns) : (call_rows))
#define RECORD sizeof(struct bench_lineitem)

static inline __attribute__((always_inline)) double q6_lanes_of(const struct scan_source *c,
                                                                size_t n, size_t s)
{
    double sum = 0.0;
    for (size_t from = 0; from < n; from += SCAN_CHUNK) {
        size_t to = BASE_MIN(from + SCAN_CHUNK, n), i = from;
        float lane[16] = {0};
        for (; i + 16 <= to; i += 16) {
            for (size_t j = 0; j < 16; j++) {
                int32_t day = AT(int32_t, c[LINE_SHIP_DAY], i + j, s);
                float discount = AT(float, c[LINE_DISCOUNT], i + j, s);
                float quantity = AT(float, c[LINE_QUANTITY], i + j, s);
                float revenue = AT(float, c[LINE_PRICE], i + j, s) * discount;
                int keep = (day >= Q6_DAY_FROM) & (day < Q6_DAY_TO) &
                           (discount > Q6_DISCOUNT_FROM) & (discount < Q6_DISCOUNT_TO) &
                           (quantity < Q6_QUANTITY);
                lane[j] += keep ? revenue : 0.0f;
            }
        }
        for (size_t j = 0; i + j < to; j++) {
            int32_t day = AT(int32_t, c[LINE_SHIP_DAY], i + j, s);
            float discount = AT(float, c[LINE_DISCOUNT], i + j, s);
            if (day >= Q6_DAY_FROM && day < Q6_DAY_TO && discount > Q6_DISCOUNT_FROM &&
                discount < Q6_DISCOUNT_TO && AT(float, c[LINE_QUANTITY], i + j, s) < Q6_QUANTITY)
                lane[j] += AT(float, c[LINE_PRICE], i + j, s) * discount;
        }
        sum += (double)scan_tree16(lane, 1);
    }
    return sum;
}

static double q6_lanes(const struct scan_source *c, size_t n)
{
    return BOTH(q6_lanes_of(c, n, sizeof(float)), q6_lanes_of(c, n, RECORD));
}

static inline __attribute__((always_inline)) double q6_plain_of(const struct scan_source *c,
                                                                size_t n, size_t s)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        int32_t day = AT(int32_t, c[LINE_SHIP_DAY], i, s);
        float discount = AT(float, c[LINE_DISCOUNT], i, s);
        if (day >= Q6_DAY_FROM && day < Q6_DAY_TO && discount > Q6_DISCOUNT_FROM &&
            discount < Q6_DISCOUNT_TO && AT(float, c[LINE_QUANTITY], i, s) < Q6_QUANTITY)
            sum += (double)(AT(float, c[LINE_PRICE], i, s) * discount);
    }
    return sum;
}

static double q6_plain(const struct scan_source *c, size_t n)
{
    return BOTH(q6_plain_of(c, n, sizeof(float)), q6_plain_of(c, n, RECORD));
}

static inline __attribute__((always_inline)) void q1_lanes_of(const struct scan_source *c, size_t n,
                                                              size_t s, size_t s1, double *ret)
{
    float acc[16][Q1_KEYS + 1][SCAN_VALUES];
    memset(ret, 0, sizeof(*ret) * Q1_KEYS * Q1_VALUES);
    for (size_t from = 0; from < n; from += SCAN_CHUNK) {
        size_t to = BASE_MIN(from + SCAN_CHUNK, n);
        memset(acc, 0, sizeof(acc));
        for (size_t i = from; i < to; i++) {
            float price = AT(float, c[LINE_PRICE], i, s),
                  discount = AT(float, c[LINE_DISCOUNT], i, s);
            float disc_price = price * (1.0f - discount);
            int32_t key = AT(int8_t, c[LINE_FLAG], i, s1) * 2 + AT(int8_t, c[LINE_STATUS], i, s1);
            key = AT(int32_t, c[LINE_SHIP_DAY], i, s) <= Q1_DAY ? key : Q1_KEYS;
            float *a = acc[i % 16][key];
            a[Q1_QUANTITY] += AT(float, c[LINE_QUANTITY], i, s);
            a[Q1_PRICE] += price;
            a[Q1_DISC_PRICE] += disc_price;
            a[Q1_CHARGE] += disc_price * (1.0f + AT(float, c[LINE_TAX], i, s));
            a[Q1_DISCOUNT] += discount;
            a[Q1_COUNT] += 1.0f;
        }
        for (int k = 0; k < Q1_KEYS; k++) {
            for (int v = 0; v < Q1_VALUES; v++)
                ret[k * Q1_VALUES + v] +=
                    (double)scan_tree16(&acc[0][k][v], (Q1_KEYS + 1) * SCAN_VALUES);
        }
    }
}

static void q1_lanes(const struct scan_source *c, size_t n, double *ret)
{
    if (c[0].stride == sizeof(float))
        q1_lanes_of(c, n, sizeof(float), 1, ret);
    else
        q1_lanes_of(c, n, RECORD, RECORD, ret);
}

static inline __attribute__((always_inline)) void q1_plain_of(const struct scan_source *c, size_t n,
                                                              size_t s, size_t s1, double *ret)
{
    memset(ret, 0, sizeof(*ret) * Q1_KEYS * Q1_VALUES);
    for (size_t i = 0; i < n; i++) {
        if (AT(int32_t, c[LINE_SHIP_DAY], i, s) > Q1_DAY)
            continue;
        float price = AT(float, c[LINE_PRICE], i, s), discount = AT(float, c[LINE_DISCOUNT], i, s);
        float disc_price = price * (1.0f - discount);
        double *a =
            ret +
            (AT(int8_t, c[LINE_FLAG], i, s1) * 2 + AT(int8_t, c[LINE_STATUS], i, s1)) * Q1_VALUES;
        a[Q1_QUANTITY] += (double)AT(float, c[LINE_QUANTITY], i, s);
        a[Q1_PRICE] += (double)price;
        a[Q1_DISC_PRICE] += (double)disc_price;
        a[Q1_CHARGE] += (double)(disc_price * (1.0f + AT(float, c[LINE_TAX], i, s)));
        a[Q1_DISCOUNT] += (double)discount;
        a[Q1_COUNT] += 1.0;
    }
}

static void q1_plain(const struct scan_source *c, size_t n, double *ret)
{
    if (c[0].stride == sizeof(float))
        q1_plain_of(c, n, sizeof(float), 1, ret);
    else
        q1_plain_of(c, n, RECORD, RECORD, ret);
}

static inline __attribute__((always_inline)) void chain_of(const struct scan_source *c, size_t n,
                                                           size_t s, float *restrict ret)
{
    for (size_t i = 0; i < n; i++) {
        float x = AT(float, c[0], i, s), y = AT(float, c[1], i, s), t = x * CHAIN_A + y;
        t = t < 0.0f ? 0.0f : t;
        t = (t * t + CHAIN_B) * y - x;
        t = __builtin_fabsf(t);
        t = CHAIN_C < t ? CHAIN_C : t;
        ret[i] = t * x * CHAIN_D - y;
    }
}

static void chain(const struct scan_source *c, size_t n, float *ret)
{
    if (c[0].stride == sizeof(float))
        chain_of(c, n, sizeof(float), ret);
    else
        chain_of(c, n, 4 * sizeof(float), ret);
}

static inline float scale_of(const uint8_t *block)
{
    uint16_t h;
    memcpy(&h, block, sizeof(h));
#ifdef __F16C__
    return _cvtsh_ss(h);
#else
    return rdu_half_load(h);
#endif
}

static void rows_q8_0(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,
                      const struct rdu_q8 *x, uint32_t n_tokens, float *y, size_t y_stride,
                      bool add)
{
    uint32_t blocks = cols / 32;
    for (size_t row = (size_t)group_from * RDU_GROUP; row < (size_t)group_to * RDU_GROUP; row++) {
        const uint8_t *first = (const uint8_t *)w + row * blocks * 34;
        for (uint32_t t = 0; t < n_tokens; t++) {
            const int8_t *q = x->q + t * x->q_stride;
            const float *d = x->d + t * x->b_stride;
            float acc = 0.0f;
            for (uint32_t b = 0; b < blocks; b++) {
                const uint8_t *block = first + (size_t)b * 34;
                int32_t sum = 0;
                for (uint32_t i = 0; i < 32; i++)
                    sum += (int8_t)block[2 + i] * q[b * 32 + i];
                acc = __builtin_fmaf(scale_of(block) * d[b], (float)sum, acc);
            }
            float *to = y + t * y_stride + row;
            *to = add ? *to + acc : acc;
        }
    }
}

/* Three walks: scale, mask and maximum; exp, cut and sum; division. */
static void sampler(const struct bench_sampler *s, size_t n, float *restrict ret)
{
    float most[16], sum[16] = {0};
    for (int j = 0; j < 16; j++)
        most[j] = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        float x = s->logits[i], less = x / s->penalty, more = x * s->penalty;
        x = s->said[i] ? (x > 0.0f ? less : more) : x;
        float z = (x + s->bias[i]) / s->temperature;
        ret[i] = s->banned[i] ? -INFINITY : z;
    }
    size_t whole = n & ~(size_t)15;
    for (size_t i = 0; i < whole; i += 16) {
        for (size_t j = 0; j < 16; j++)
            most[j] = ret[i + j] > most[j] ? ret[i + j] : most[j];
    }
    for (size_t i = whole; i < n; i++)
        most[i % 16] = ret[i] > most[i % 16] ? ret[i] : most[i % 16];
    float top = most[0];
    for (int j = 1; j < 16; j++)
        top = most[j] > top ? most[j] : top;
    for (size_t i = 0; i < n; i++) {
        float p = rdu_expf(ret[i] - top);
        ret[i] = p < s->min_p ? 0.0f : p;
    }
    for (size_t i = 0; i < whole; i += 16) {
        for (size_t j = 0; j < 16; j++)
            sum[j] += ret[i + j];
    }
    for (size_t i = whole; i < n; i++)
        sum[i % 16] += ret[i];
    float total = scan_tree16(sum, 1);
    for (size_t i = 0; i < n; i++)
        ret[i] = ret[i] / total;
}

void BENCH_HAND_INIT(struct bench_hand *h)
{
    *h = (struct bench_hand){q6_lanes, q6_plain, q1_lanes, q1_plain, chain, rows_q8_0, sampler};
}
