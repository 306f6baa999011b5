/* Packing and unpacking rows of any type by the field lists of pack.h, and the scalar accessors.
 * The field lists are the only description of the layouts: pack and unpack cannot disagree. */
#include "rdu/kernels/pack.h"

#include "rdu/kernels/kernels.h"

static const struct rdu_pack_layout layouts[RDU_TYPES] = {
    [RDU_F32] = {{{0, 4, 4}}},
    [RDU_F16] = {{{0, 2, 2}}},
    [RDU_BF16] = {{{0, 2, 2}}},
    [RDU_Q4_0] = {{{0, 2, 2}, {2, 16, 4}}},
    [RDU_Q4_1] = {{{0, 2, 2}, {2, 2, 2}, {4, 16, 4}}},
    [RDU_Q5_0] = {{{0, 2, 2}, {2, 4, 0}, {6, 16, 4}}},
    [RDU_Q5_1] = {{{0, 2, 2}, {2, 2, 2}, {4, 4, 0}, {8, 16, 4}}},
    [RDU_Q8_0] = {{{0, 2, 2}, {2, 32, 4}}},
    [RDU_Q2_K] = {{{80, 2, 2}, {82, 2, 2}, {0, 16, 1}, {16, 64, 4}}},
    [RDU_Q3_K] = {{{108, 2, 2}, {96, 12, 1}, {0, 32, 4}, {32, 64, 4}}},
    [RDU_Q4_K] = {{{0, 2, 2}, {2, 2, 2}, {4, 12, 1}, {16, 128, 4}}},
    [RDU_Q5_K] = {{{0, 2, 2}, {2, 2, 2}, {4, 12, 1}, {16, 32, 4}, {48, 128, 4}}},
    [RDU_Q6_K] = {{{208, 2, 2}, {192, 16, 1}, {0, 128, 4}, {128, 64, 4}}},
    [RDU_IQ1_S] = {{{0, 50, 50}}},
    [RDU_IQ2_XXS] = {{{0, 66, 66}}},
    [RDU_IQ2_XS] = {{{0, 74, 74}}},
    [RDU_IQ2_S] = {{{0, 82, 82}}},
    [RDU_IQ3_XXS] = {{{0, 98, 98}}},
    [RDU_IQ3_S] = {{{0, 110, 110}}},
    [RDU_IQ4_NL] = {{{0, 2, 2}, {2, 16, 4}}},
    [RDU_IQ4_XS] = {{{0, 2, 2}, {2, 2, 2}, {4, 4, 1}, {8, 128, 4}}},
    [RDU_TQ1_0] = {{{0, 54, 54}}},
    [RDU_TQ2_0] = {{{0, 66, 66}}},
};

const struct rdu_pack_layout *rdu_pack_layout(enum rdu_type type)
{
    return &layouts[type];
}

size_t rdu_pack_bytes(enum rdu_type type, size_t rows, size_t cols)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t groups, bytes;
    if (info == NULL || cols > RDU_COLS_MAX || cols % info->block_elems != 0 ||
        !size_add(rows, RDU_GROUP - 1, &groups))
        return 0;
    groups /= RDU_GROUP;
    if (!size_mul(cols / info->block_elems, (size_t)info->block_bytes * RDU_GROUP, &bytes) ||
        !size_mul(bytes, groups, &bytes))
        return 0;
    return bytes;
}

/* Columns 4 j + k of the raw word go to bit j of byte k. */
static uint32_t spread_fifth_bits(uint32_t word)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < 32; i++)
        v |= (word >> i & 1u) << (i % 4 * 8 + i / 4);
    return v;
}

static uint32_t gather_fifth_bits(uint32_t spread)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < 32; i++)
        v |= (spread >> (i % 4 * 8 + i / 4) & 1u) << i;
    return v;
}

static void copy_units(uint8_t *dst, size_t dst_step, const uint8_t *src, size_t src_step,
                       unsigned unit, unsigned count)
{
    if (unit == 4) {
        for (unsigned i = 0; i < count; i++)
            memcpy(dst + i * dst_step, src + i * src_step, 4);
    } else if (unit == 2) {
        for (unsigned i = 0; i < count; i++)
            memcpy(dst + i * dst_step, src + i * src_step, 2);
    } else {
        for (unsigned i = 0; i < count; i++)
            memcpy(dst + i * dst_step, src + i * src_step, unit);
    }
}

static void pack_block(const struct rdu_pack_layout *layout, const uint8_t *raw, unsigned row,
                       uint8_t *packed)
{
    for (unsigned i = 0; i < RDU_PACK_FIELDS && layout->field[i].bytes > 0; i++) {
        struct rdu_pack_field f = layout->field[i];
        if (f.unit == 0) {
            uint32_t v = spread_fifth_bits(rdu_load_u32(raw + f.src));
            memcpy(packed + row * sizeof v, &v, sizeof v);
        } else {
            copy_units(packed + row * f.unit, (size_t)f.unit * RDU_GROUP, raw + f.src, f.unit,
                       f.unit, f.bytes / f.unit);
        }
        packed += f.bytes * RDU_GROUP;
    }
}

void rdu_unpack_block(enum rdu_type type, const uint8_t *packed, unsigned row, uint8_t *raw)
{
    const struct rdu_pack_layout *layout = &layouts[type];
    for (unsigned i = 0; i < RDU_PACK_FIELDS && layout->field[i].bytes > 0; i++) {
        struct rdu_pack_field f = layout->field[i];
        if (f.unit == 0) {
            uint32_t v = gather_fifth_bits(rdu_load_u32(packed + row * sizeof v));
            memcpy(raw + f.src, &v, sizeof v);
        } else {
            copy_units(raw + f.src, f.unit, packed + row * f.unit, (size_t)f.unit * RDU_GROUP,
                       f.unit, f.bytes / f.unit);
        }
        packed += f.bytes * RDU_GROUP;
    }
}

/* One row of floats: element i to or from packed[i * RDU_GROUP]. */
static void copy_float_row(uint8_t *dst, size_t dst_step, const uint8_t *src, size_t src_step,
                           unsigned bytes, size_t count)
{
    if (bytes == 4) {
        for (size_t i = 0; i < count; i++)
            memcpy(dst + i * dst_step, src + i * src_step, 4);
    } else {
        for (size_t i = 0; i < count; i++)
            memcpy(dst + i * dst_step, src + i * src_step, 2);
    }
}

void rdu_pack_rows(enum rdu_type type, size_t rows, size_t cols, const void *src, void *dst)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t blocks = cols / info->block_elems, row_bytes = blocks * info->block_bytes;
    size_t group_bytes = row_bytes * RDU_GROUP;
    if (rows % RDU_GROUP != 0)
        memset((uint8_t *)dst + rows / RDU_GROUP * group_bytes, 0, group_bytes);
    for (size_t row = 0; row < rows; row++) {
        const uint8_t *raw = (const uint8_t *)src + row * row_bytes;
        uint8_t *packed = (uint8_t *)dst + row / RDU_GROUP * group_bytes;
        const unsigned bytes = info->block_bytes;
        if (info->is_float) {
            copy_float_row(packed + row % RDU_GROUP * bytes, (size_t)bytes * RDU_GROUP, raw, bytes,
                           bytes, blocks);
            continue;
        }
        for (size_t b = 0; b < blocks; b++)
            pack_block(&layouts[type], raw + b * info->block_bytes, row % RDU_GROUP,
                       packed + b * info->block_bytes * RDU_GROUP);
    }
}

void rdu_unpack_rows(enum rdu_type type, size_t rows, size_t cols, const void *src, void *dst)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t blocks = cols / info->block_elems, row_bytes = blocks * info->block_bytes;
    for (size_t row = 0; row < rows; row++) {
        const uint8_t *packed = (const uint8_t *)src + row / RDU_GROUP * RDU_GROUP * row_bytes;
        const unsigned bytes = info->block_bytes;
        if (info->is_float) {
            copy_float_row((uint8_t *)dst + row * row_bytes, bytes,
                           packed + row % RDU_GROUP * bytes, (size_t)bytes * RDU_GROUP, bytes,
                           blocks);
            continue;
        }
        for (size_t b = 0; b < blocks; b++)
            rdu_unpack_block(type, packed + b * info->block_bytes * RDU_GROUP, row % RDU_GROUP,
                             (uint8_t *)dst + row * row_bytes + b * info->block_bytes);
    }
}

/* ---- rule 6: integers and scales of one run -------------------------------------------------- */

bool rdu_type_has_q8(enum rdu_type type)
{
    return rdu_has_q8(type);
}

bool rdu_type_has_min(enum rdu_type type)
{
    return rdu_has_min(type);
}

static float half_at(const uint8_t *packed, size_t offset, unsigned row)
{
    return rdu_half_load(rdu_load_u16(packed + offset + row * 2));
}

/* Nibbles of columns 0..31: 4 units of 8 rows x 4 bytes, low then high. */
static void run_nibbles(const uint8_t *q, unsigned row, int offset, int16_t *ret)
{
    for (unsigned i = 0; i < 16; i++) {
        uint8_t v = q[i / 4 * 32 + row * 4 + i % 4];
        ret[i] = (int16_t)((v & 15) - offset);
        ret[16 + i] = (int16_t)((v >> 4) - offset);
    }
}

static void run_fifth_bits(const uint8_t *h, unsigned row, int16_t *q)
{
    for (unsigned i = 0; i < 32; i++)
        q[i] = (int16_t)(q[i] + ((h[row * 4 + i % 4] >> (i / 4) & 1) << 4));
}

static void run_basic(enum rdu_type type, const uint8_t *p, unsigned row, struct rdu_run *ret)
{
    ret->d = half_at(p, 0, row);
    if (type == RDU_Q4_0) {
        run_nibbles(p + PACK_Q4_0_Q, row, 8, ret->q);
    } else if (type == RDU_Q4_1) {
        ret->m[0] = ret->m[1] = half_at(p, PACK_Q4_1_M, row);
        run_nibbles(p + PACK_Q4_1_Q, row, 0, ret->q);
    } else if (type == RDU_Q5_0) {
        run_nibbles(p + PACK_Q5_0_Q, row, 16, ret->q);
        run_fifth_bits(p + PACK_Q5_0_H, row, ret->q);
    } else if (type == RDU_Q5_1) {
        ret->m[0] = ret->m[1] = half_at(p, PACK_Q5_1_M, row);
        run_nibbles(p + PACK_Q5_1_Q, row, 0, ret->q);
        run_fifth_bits(p + PACK_Q5_1_H, row, ret->q);
    } else {
        for (unsigned i = 0; i < 32; i++)
            ret->q[i] = (int8_t)p[PACK_Q8_0_Q + i / 4 * 32 + row * 4 + i % 4];
    }
}

/* Byte `i` of a field of 4-byte units. */
static uint8_t unit_byte(const uint8_t *field, unsigned row, unsigned i)
{
    return field[i / 4 * 32 + row * 4 + i % 4];
}

static void run_q45_k(enum rdu_type type, const uint8_t *p, unsigned row, unsigned run,
                      struct rdu_run *ret)
{
    uint8_t sc, mn;
    rdu_k_scale_min(p + PACK_K_SCALES + row, RDU_GROUP, run, &sc, &mn);
    ret->d = half_at(p, 0, row) * (float)sc;
    ret->m[0] = ret->m[1] = -(half_at(p, PACK_K_DMIN, row) * (float)mn);
    const uint8_t *q = p + (type == RDU_Q4_K ? PACK_Q4_K_Q : PACK_Q5_K_Q);
    for (unsigned i = 0; i < 32; i++) {
        int v = unit_byte(q, row, run / 2 * 32 + i) >> (run % 2 * 4) & 15;
        if (type == RDU_Q5_K)
            v |= (unit_byte(p + PACK_Q5_K_H, row, i) >> run & 1) << 4;
        ret->q[i] = (int16_t)v;
    }
}

static void run_q6_k(const uint8_t *p, unsigned row, unsigned run, struct rdu_run *ret)
{
    ret->d = half_at(p, 0, row);
    for (unsigned i = 0; i < 32; i++) {
        unsigned half = run / 4, quarter = run % 4;
        int low = unit_byte(p + PACK_Q6_K_LOW, row, half * 64 + quarter % 2 * 32 + i) >>
                      (quarter / 2 * 4) &
                  15;
        int top = unit_byte(p + PACK_Q6_K_TOP, row, half * 32 + i) >> (2 * quarter) & 3;
        int sc = (int8_t)p[PACK_Q6_K_SCALES + (run * 2 + i / 16) * RDU_GROUP + row];
        ret->q[i] = (int16_t)(sc * ((low | top << 4) - 32));
    }
}

static void run_q3_k(const uint8_t *p, unsigned row, unsigned run, struct rdu_run *ret)
{
    ret->d = half_at(p, 0, row);
    for (unsigned i = 0; i < 32; i++) {
        int q = unit_byte(p + PACK_Q3_K_Q, row, run / 4 * 32 + i) >> (2 * (run % 4)) & 3;
        int high = unit_byte(p + PACK_Q3_K_H, row, i) >> run & 1;
        int sc = rdu_q3_k_scale(p + PACK_Q3_K_SCALES + row, RDU_GROUP, run * 2 + i / 16);
        ret->q[i] = (int16_t)(sc * (q - (high ? 0 : 4)));
    }
}

static void run_q2_k(const uint8_t *p, unsigned row, unsigned run, struct rdu_run *ret)
{
    float dmin = half_at(p, PACK_K_DMIN, row);
    const uint8_t *scales = p + PACK_K_SCALES + run * 2 * RDU_GROUP + row;
    ret->d = half_at(p, 0, row);
    ret->m[0] = -(dmin * (float)(scales[0] >> 4));
    ret->m[1] = -(dmin * (float)(scales[RDU_GROUP] >> 4));
    for (unsigned i = 0; i < 32; i++) {
        int q = unit_byte(p + PACK_Q2_K_Q, row, run / 4 * 32 + i) >> (2 * (run % 4)) & 3;
        ret->q[i] = (int16_t)(q * (scales[i / 16 * RDU_GROUP] & 15));
    }
}

void rdu_packed_run(enum rdu_type type, const uint8_t *packed, unsigned row, unsigned run,
                    struct rdu_run *ret)
{
    ret->m[0] = ret->m[1] = 0;
    if (type == RDU_Q4_K || type == RDU_Q5_K)
        run_q45_k(type, packed, row, run, ret);
    else if (type == RDU_Q6_K)
        run_q6_k(packed, row, run, ret);
    else if (type == RDU_Q3_K)
        run_q3_k(packed, row, run, ret);
    else if (type == RDU_Q2_K)
        run_q2_k(packed, row, run, ret);
    else
        run_basic(type, packed, row, ret);
}

/* ---- accessors ------------------------------------------------------------------------------- */

/* The packed block that holds (row, col). */
static const uint8_t *block_of(enum rdu_type type, const void *w, uint32_t cols, uint32_t row,
                               uint32_t col)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t blocks = cols / info->block_elems;
    size_t index = row / RDU_GROUP * blocks + col / info->block_elems;
    return (const uint8_t *)w + index * info->block_bytes * RDU_GROUP;
}

static void run_of(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t col,
                   struct rdu_run *ret)
{
    unsigned run = col % rdu_type_info(type)->block_elems / RDU_RUN;
    rdu_packed_run(type, block_of(type, w, cols, row, col), row % RDU_GROUP, run, ret);
}

float rdu_packed_f32(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t col)
{
    const uint8_t *packed = block_of(type, w, cols, row, col);
    unsigned r = row % RDU_GROUP;
    if (type == RDU_F32)
        return rdu_float_of_bits(rdu_load_u32(packed + r * 4));
    if (type == RDU_F16)
        return half_at(packed, 0, r);
    if (type == RDU_BF16)
        return rdu_bf16_load(rdu_load_u16(packed + r * 2));
    if (rdu_type_has_q8(type) && type != RDU_Q3_K && type != RDU_Q6_K) {
        /* Those two fold signed scales into q, which would lose the sign of a zero. */
        struct rdu_run run;
        run_of(type, w, cols, row, col, &run);
        unsigned i = col % RDU_RUN;
        float v = run.d * (float)run.q[i];
        return rdu_type_has_min(type) ? v + run.m[i / 16] : v;
    }
    uint8_t raw[RDU_BLOCK_BYTES_MAX];
    float values[RDU_BLOCK_ELEMS_MAX];
    uint32_t elems = rdu_type_info(type)->block_elems;
    rdu_unpack_block(type, packed, r, raw);
    rdu_dequant_row(type, raw, values, elems);
    return values[col % elems];
}

int32_t rdu_packed_q(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t col)
{
    struct rdu_run run;
    run_of(type, w, cols, row, col, &run);
    return run.q[col % RDU_RUN];
}

float rdu_packed_d(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t block)
{
    struct rdu_run run;
    run_of(type, w, cols, row, block * RDU_RUN, &run);
    return run.d;
}

float rdu_packed_m(enum rdu_type type, const void *w, uint32_t cols, uint32_t row, uint32_t block)
{
    struct rdu_run run;
    run_of(type, w, cols, row, block * RDU_RUN, &run);
    return run.m[0];
}
