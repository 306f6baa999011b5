/* Reducing blocks of lanes. Compiled twice, for the baseline and for AVX2 (SCAN_OPS_INIT names the
 * entry); the order of additions is fixed by rule 13, so both give the same bits. */
#include <string.h>

#include "rdu/scan/scan.h"

#ifndef SCAN_OPS_INIT
#define SCAN_OPS_INIT scan_ops_base
#endif

typedef float lane8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t pick8 __attribute__((vector_size(32), aligned(4), may_alias));

static void sum16_if(float *acc, const int32_t *mask, const float *v, uint32_t n)
{
    lane8 a = *(const lane8 *)acc, b = *(const lane8 *)(acc + 8);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        /* 0.0f where the mask is not set: its bits are all zero. */
        a += (lane8)(*(const pick8 *)(v + i) & (*(const pick8 *)(mask + i) != 0));
        b += (lane8)(*(const pick8 *)(v + i + 8) & (*(const pick8 *)(mask + i + 8) != 0));
    }
    *(lane8 *)acc = a;
    *(lane8 *)(acc + 8) = b;
    for (uint32_t j = 0; i + j < n; j++)
        acc[j] += mask[i + j] ? v[i + j] : 0.0f;
}

static void slots(int32_t *slot, const int32_t *key, const int32_t *mask, int32_t keys, uint32_t n)
{
    if (mask == NULL) {
        for (uint32_t i = 0; i < n; i++)
            slot[i] = (uint32_t)key[i] < (uint32_t)keys ? key[i] : keys;
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        slot[i] = ((uint32_t)key[i] < (uint32_t)keys) & (mask[i] != 0) ? key[i] : keys;
}

/* Eight rows of eight values at once: turned from columns to rows, then one addition per row. Which
 * of the 16 partial sums a row goes to is its number, so that neighbouring rows of one key never
 * wait for each other. */
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (pick8){__VA_ARGS__})
#endif

static void turn8(const lane8 v[8], lane8 r[8])
{
    lane8 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = PICK(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = PICK(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = PICK(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        b[i + 1] = PICK(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        b[i + 2] = PICK(a[i + 1], a[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        b[i + 3] = PICK(a[i + 1], a[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = PICK(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = PICK(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

static void hash16(float *acc, uint32_t keys, const int32_t *slot, const float *const *value,
                   uint32_t values, uint32_t n)
{
    size_t stride = (size_t)(keys + 1) * SCAN_VALUES;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        lane8 v[8] = {{0}}, r[8];
        for (uint32_t k = 0; k < values; k++)
            v[k] = *(const lane8 *)(value[k] + i);
        turn8(v, r);
        float *at = acc + (i % 16) * stride;
        for (uint32_t j = 0; j < 8; j++) {
            lane8 *a = (lane8 *)(at + j * stride + (size_t)slot[i + j] * SCAN_VALUES);
            *a = *a + r[j];
        }
    }
    for (; i < n; i++) {
        float *a = acc + (i % 16) * stride + (size_t)slot[i] * SCAN_VALUES;
        for (uint32_t k = 0; k < values; k++)
            a[k] = a[k] + value[k][i];
    }
}

void SCAN_OPS_INIT(struct scan_ops *o)
{
    o->sum16_if = sum16_if;
    o->slots = slots;
    o->hash16 = hash16;
}
