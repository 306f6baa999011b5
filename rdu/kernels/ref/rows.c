/* Operations on single rows: norms, quantisation, activations, rope, argmax; rules 1-4, 8 and 10 of
 * rdu/README.md. */
#include "rdu/kernels/ref/ref.h"

#include "rdu/kernels/pack.h"

#include <math.h>

static float sum16_squares(const float *x, uint32_t n)
{
    float lane[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % 16] = __builtin_fmaf(x[i], x[i], lane[i % 16]);
    for (unsigned half = 8; half > 0; half /= 2)
        for (unsigned i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

static void rms_norm(const float *x, const float *w, float eps, uint32_t n, float *y)
{
    float r = 1.0f / sqrtf(sum16_squares(x, n) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = (x[i] * r) * w[i];
}

static void quantize_block(const float *x, uint32_t n, int8_t *q, float *ret_d, float *ret_s)
{
    float amax = 0;
    for (uint32_t i = 0; i < n; i++)
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    /* Below 2^-119 the scale would be subnormal and its reciprocal infinite. */
    float d = amax < 0x1p-119f ? 0.0f : amax / 127.0f;
    float inverse = 1.0f / d;
    int32_t sum = 0;
    for (uint32_t i = 0; i < RDU_RUN; i++) {
        float v = i < n && d != 0.0f ? rintf(x[i] * inverse) : 0.0f;
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
        q[i] = isnan(v) ? 0 : (int8_t)v;
        sum += q[i];
    }
    *ret_d = d;
    *ret_s = d * (float)sum;
}

static void quantize(const float *x, uint32_t n, int8_t *q, float *d, float *s)
{
    for (uint32_t i = 0; i < n; i += RDU_RUN)
        quantize_block(x + i, BASE_MIN(n - i, (uint32_t)RDU_RUN), q + i, d + i / RDU_RUN,
                       s + i / RDU_RUN);
}

static void silu_mul(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = (gate[i] / (1.0f + rdu_expf(-gate[i]))) * up[i];
}

static void gelu_mul(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++) {
        float g = gate[i];
        float inner = 0.7978845608f * (g + 0.044715f * g * g * g);
        y[i] = 0.5f * g * (1.0f + rdu_tanhf(inner)) * up[i];
    }
}

static void gelu(const float *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = rdu_geluf(x[i]);
}

static void center(const float *x, uint32_t n, float *y)
{
    float lane[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % 16] = lane[i % 16] + x[i];
    for (unsigned half = 8; half > 0; half /= 2)
        for (unsigned i = 0; i < half; i++)
            lane[i] += lane[i + half];
    float mean = lane[0] / (float)n;
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] - mean;
}

static void add(const float *a, const float *b, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void axpy(float a, const float *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = __builtin_fmaf(a, x[i], y[i]);
}

static void scale(const float *x, float factor, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * factor;
}

static void softcap(const float *x, float cap, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = cap * rdu_tanhf(x[i] / cap);
}

static void rope(float *x, const float *c, const float *s, uint32_t heads, uint32_t head_dim,
                 uint32_t rot, enum rdu_rope style)
{
    uint32_t half = rot / 2;
    for (uint32_t h = 0; h < heads; h++, x += head_dim) {
        for (uint32_t i = 0; i < half; i++) {
            float *pa = style == RDU_ROPE_PAIRS ? x + 2 * (size_t)i : x + i;
            float *pb = style == RDU_ROPE_PAIRS ? pa + 1 : pa + half;
            float a = *pa, b = *pb;
            *pa = __builtin_fmaf(a, c[i], -(b * s[i]));
            *pb = __builtin_fmaf(a, s[i], b * c[i]);
        }
    }
}

/* Every eighth element. */
static void unpack_floats(enum rdu_type type, const uint8_t *packed, uint32_t n, float *y)
{
    const uint8_t *p = packed;
    if (type == RDU_F32)
        for (uint32_t i = 0; i < n; i++, p += 4 * RDU_GROUP)
            y[i] = rdu_float_of_bits(rdu_load_u32(p));
    else if (type == RDU_F16)
        for (uint32_t i = 0; i < n; i++, p += 2 * RDU_GROUP)
            y[i] = rdu_half_load(rdu_load_u16(p));
    else
        for (uint32_t i = 0; i < n; i++, p += 2 * RDU_GROUP)
            y[i] = rdu_bf16_load(rdu_load_u16(p));
}

static void unpack_row(enum rdu_type type, const void *w, uint32_t row, uint32_t cols, float *y)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t packed_bytes = (size_t)info->block_bytes * RDU_GROUP, blocks = cols / info->block_elems;
    const uint8_t *packed = (const uint8_t *)w + row / RDU_GROUP * blocks * packed_bytes;
    unsigned r = row % RDU_GROUP;
    if (info->is_float) {
        unpack_floats(type, packed + r * info->block_bytes, cols, y);
        return;
    }
    for (size_t b = 0; b < blocks; b++) {
        uint8_t raw[RDU_BLOCK_BYTES_MAX];
        rdu_unpack_block(type, packed + b * packed_bytes, r, raw);
        rdu_dequant_row(type, raw, y + b * info->block_elems, info->block_elems);
    }
}

static void argmax(const float *x, uint32_t n, uint32_t *ret_idx, float *ret_max)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i])))
            best = i;
    *ret_idx = best;
    *ret_max = x[best];
}

void REF(rdu_ref_rows)(struct rdu_kernels *k)
{
    k->rms_norm = rms_norm;
    k->quantize = quantize;
    k->silu_mul = silu_mul;
    k->gelu_mul = gelu_mul;
    k->gelu = gelu;
    k->center = center;
    k->add = add;
    k->axpy = axpy;
    k->scale = scale;
    k->softcap = softcap;
    k->rope = rope;
    k->unpack_row = unpack_row;
    k->argmax = argmax;
}
