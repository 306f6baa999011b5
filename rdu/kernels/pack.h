/* Packed weights: what a group of 8 rows looks like, and scalar access to it. Private to
 * rdu/kernels and its tests.
 *
 * A group holds one packed block per raw block column, each 8 * block_bytes long. A packed block is
 * a list of fields; a field of `unit` bytes stores its units in the order of the raw block, and for
 * each unit the 8 rows one after the other:
 *
 *   Q4_0     d 2 | nibbles 4
 *   Q4_1     d 2 | m 2 | nibbles 4
 *   Q5_0     d 2 | fifth bits * | nibbles 4
 *   Q5_1     d 2 | m 2 | fifth bits * | nibbles 4
 *   Q8_0     d 2 | bytes 4
 *   Q2_K     d 2 | dmin 2 | scales 1 | pairs 4
 *   Q3_K     d 2 | scales 1 | third bits 4 | pairs 4
 *   Q4_K     d 2 | dmin 2 | scales 1 | nibbles 4
 *   Q5_K     d 2 | dmin 2 | scales 1 | fifth bits 4 | nibbles 4
 *   Q6_K     d 2 | scales 1 | low 4 | top 4
 *   IQ4_NL   d 2 | nibbles 4
 *   IQ4_XS   d 2 | scale tops 2 | scales 1 | nibbles 4
 *   F16, BF16 2; F32 4; all others: raw blocks, one per row
 *
 * So one 32-byte load gives 8 rows times 4 neighbouring columns, the operand shape of vpdpbusd, and
 * one 16-byte load the 8 scales. (*) Fifth bits of Q5_0 and Q5_1: bit j of byte k is column 4 j +
 * k, so that a shift by j lines them up with the nibbles of columns 4 j .. 4 j + 3. */
#ifndef SWITCHYARD_RDU_KERNELS_PACK_H
#define SWITCHYARD_RDU_KERNELS_PACK_H

#include "rdu/kernels/half.h"
#include "rdu/kernels/quants.h"

/* Longest row: keeps the leaves' scratch on the stack and int32 sums exact. rdu_pack_bytes refuses
 * more. */
#define RDU_COLS_MAX ((size_t)1 << 17)

#define RDU_RUN 32 /* columns whose products are summed before the row's accumulator sees them */

/* Byte offsets of fields inside packed blocks, as the leaves use them. */
enum {
    PACK_Q4_0_Q = 16,
    PACK_Q4_1_M = 16,
    PACK_Q4_1_Q = 32,
    PACK_Q5_0_H = 16,
    PACK_Q5_0_Q = 48,
    PACK_Q5_1_M = 16,
    PACK_Q5_1_H = 32,
    PACK_Q5_1_Q = 64,
    PACK_Q8_0_Q = 16,
    PACK_K_DMIN = 16,
    PACK_K_SCALES = 32, /* Q2_K, Q4_K, Q5_K */
    PACK_Q4_K_Q = 128,
    PACK_Q5_K_H = 128,
    PACK_Q5_K_Q = 384,
    PACK_Q6_K_SCALES = 16,
    PACK_Q6_K_LOW = 144,
    PACK_Q6_K_TOP = 1168,
    PACK_Q3_K_SCALES = 16,
    PACK_Q3_K_H = 112,
    PACK_Q3_K_Q = 368,
    PACK_Q2_K_Q = 160,
    PACK_IQ4_NL_Q = 16,
    PACK_IQ4_XS_TOPS = 16,
    PACK_IQ4_XS_SCALES = 32,
    PACK_IQ4_XS_Q = 64,
};

/* Facts of types that fold to constants inside a leaf written for one type. */
static inline unsigned rdu_block_elems(enum rdu_type type)
{
    return type < RDU_Q4_0 ? 1 : type <= RDU_Q8_0 || type == RDU_IQ4_NL ? 32 : 256;
}

static inline bool rdu_has_q8(enum rdu_type type)
{
    return type >= RDU_Q4_0 && type <= RDU_Q6_K;
}

/* Types whose packed fields vector code decodes (the others stay raw blocks). */
static inline bool rdu_is_interleaved(enum rdu_type type)
{
    return rdu_has_q8(type) || type == RDU_IQ4_NL || type == RDU_IQ4_XS;
}

/* Bytes of a packed block of such a type. */
static inline size_t rdu_packed_block_bytes(enum rdu_type type)
{
    return RDU_GROUP * (type == RDU_Q4_0     ? 18u
                        : type == RDU_Q4_1   ? 20u
                        : type == RDU_Q5_0   ? 22u
                        : type == RDU_Q5_1   ? 24u
                        : type == RDU_Q8_0   ? 34u
                        : type == RDU_Q2_K   ? 84u
                        : type == RDU_Q3_K   ? 110u
                        : type == RDU_Q4_K   ? 144u
                        : type == RDU_Q5_K   ? 176u
                        : type == RDU_IQ4_NL ? 18u
                        : type == RDU_IQ4_XS ? 136u
                                             : 210u);
}

static inline bool rdu_has_min(enum rdu_type type)
{
    return type == RDU_Q4_1 || type == RDU_Q5_1 || type == RDU_Q2_K || type == RDU_Q4_K ||
           type == RDU_Q5_K;
}

/* Scales per 16 columns: two integer sums per run. */
static inline bool rdu_has_half_scales(enum rdu_type type)
{
    return type == RDU_Q2_K || type == RDU_Q3_K || type == RDU_Q6_K;
}

/* What the stored unsigned integers (Q8_0: after flipping the sign bit) are above the weights. */
static inline int rdu_offset(enum rdu_type type)
{
    return type == RDU_Q8_0   ? 128
           : type == RDU_Q6_K ? 32
           : type == RDU_Q5_0 ? 16
           : type == RDU_Q4_0 ? 8
           : type == RDU_Q3_K ? 4
                              : 0;
}

struct rdu_pack_field {
    uint16_t src, bytes; /* in the raw block */
    uint8_t unit;        /* 0: the fifth bits of Q5_0, Q5_1 */
};
#define RDU_PACK_FIELDS 5
struct rdu_pack_layout {
    struct rdu_pack_field field[RDU_PACK_FIELDS]; /* in packed order; bytes == 0 ends the list */
};
const struct rdu_pack_layout *rdu_pack_layout(enum rdu_type type);

/* Raw block of one row out of a packed block. */
void rdu_unpack_block(enum rdu_type type, const uint8_t *packed, unsigned row, uint8_t *raw);

/* Integers and scales of one row's run of 32 columns (rdu/README.md rule 6) out of a packed block
 * that holds the run. Scales per 16 columns are folded into q (exact in int16); Q2_K has a minimum
 * for each half of the run, the others the same twice. */
struct rdu_run {
    int16_t q[RDU_RUN];
    float d, m[2];
};
void rdu_packed_run(enum rdu_type type, const uint8_t *packed, unsigned row, unsigned run,
                    struct rdu_run *ret);

#define RDU_BLOCK_BYTES_MAX 256 /* of a raw block, any type */
#define RDU_BLOCK_ELEMS_MAX 256

#endif
