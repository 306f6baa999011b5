/* router/head: the trained head as a file and in memory. Private to router/.
 *
 * File, little endian, no padding between the parts:
 *   struct head_header
 *   labels     [labels][ROUTER_NAME_MAX]  UTF-8, NUL-padded
 *   bias       [labels] f32
 *   scale      [labels] f32               logit = bias + scale * sum over features (value * weight)
 *   present    [space / 64] u64           bit f is set if feature f has a row of weights
 *   weights    [features][labels] int8    rows in the order of the set bits
 * and, if header.width > 0, the encoder stage:
 *   matrix     [labels][width] f32        logit = offset + matrix . vector
 *   offset     [labels] f32
 *   entitled   [labels] f32               from this probability on the n-gram stage answers alone
 *   sample_of  [samples] u32              label of a sample
 *   samples    [samples][width] int8      vectors of prompts, times sample_scale: what prototypes
 * of experts added later are weighed against Features that training never saw have no row: they
 * cost one bit and no cache line. */
#ifndef SWITCHYARD_ROUTER_HEAD_H
#define SWITCHYARD_ROUTER_HEAD_H

#include "router/router.h"
#include "router/text.h"

#define HEAD_MAGIC "SWYROUTE"
#define HEAD_VERSION 2
#define HEAD_BYTES_MAX (64 * BASE_MIB) /* what open() is willing to read */
#define HEAD_WIDTH_MAX 8192
#define HEAD_SAMPLES_MAX 65536
#define HEAD_SEED 0x53575952u /* of the checksum */

struct head_header {
    char magic[8];
    uint32_t version;
    uint32_t header_bytes; /* sizeof(struct head_header) */
    uint64_t file_bytes;
    uint64_t checksum; /* XXH3-64 of every byte after this field */
    struct text_geometry geometry;
    uint32_t labels;
    uint32_t features;
    int32_t general_idx; /* the label that means "no specialist", -1 = none */
    float temperature;   /* [0.001, 1000]; logits are divided by it */
    float threshold;     /* [0, 1] */
    float stay;          /* [0, 1): chance that a turn keeps the expert of the turn before */
    uint64_t encoder_id; /* of the encoder that the stage was trained with */
    uint32_t width;      /* floats of its vectors; 0 = the head has no encoder stage */
    uint32_t samples;
    float encoder_temperature; /* [0.001, 1000] */
    float mix;          /* [0, 16]: weight of the n-gram stage's log probabilities beside its own */
    float sample_scale; /* (0, 1] */
    uint32_t reserved;  /* 0 */
};

/* Parts of a head that is to be written; rows are those of the bits in `present`. */
struct head_parts {
    struct head_header header; /* magic, sizes and checksum are filled in */
    const char (*labels)[ROUTER_NAME_MAX];
    const float *bias, *scale;               /* [labels] */
    const uint64_t *present;                 /* [text_space / 64] */
    const int8_t *weights;                   /* [features, labels] row-major */
    const float *matrix, *offset, *entitled; /* header.width > 0 only, as in the file */
    const uint32_t *sample_of;
    const int8_t *samples;
};
void head_write(const struct head_parts *p, struct buf *ret);
/* File size of the n-gram stage for a geometry, and of the encoder stage (0 for width 0); false on
 * overflow. */
bool head_bytes(const struct text_geometry *g, size_t labels, size_t features, size_t *ret);
bool head_encoder_bytes(size_t labels, size_t width, size_t samples, size_t *ret);

/* 64 features of the space: which have rows, and how many rows come before them. */
struct head_block {
    uint64_t present;
    uint64_t rows_before;
};

struct router_head {
    struct head_header header;
    char (*labels)[ROUTER_NAME_MAX];
    float *bias, *scale;
    struct head_block *blocks; /* [text_space / 64] */
    int8_t *weights;
    float *matrix, *offset, *entitled; /* NULL without an encoder stage */
    uint32_t *sample_of;
    int8_t *samples;
};

/* Weights of a feature, [labels], or NULL if it has none. */
static inline const int8_t *head_row(const struct router_head *h, uint32_t idx)
{
    const struct head_block *b = &h->blocks[idx / 64];
    uint64_t bit = (uint64_t)1 << (idx % 64);
    if (!(b->present & bit))
        return NULL;
    size_t row = b->rows_before + (size_t)__builtin_popcountll(b->present & (bit - 1));
    return h->weights + row * h->header.labels;
}

/* Uncalibrated logits [labels] of a vector. */
void head_logits(const struct router_head *h, const struct text_feature *f, size_t count,
                 float *ret_logits);

/* Posterior [labels] of the encoder stage for a vector [width]; `ngram` are the n-gram stage's
 * probabilities. */
void head_encoder_posterior(const struct router_head *h, const float *vector, const float *ngram,
                            float *ret);
/* The same before the temperature, as logits. */
void head_encoder_logits(const struct router_head *h, const float *vector, const float *ngram,
                         float *ret);

#endif
