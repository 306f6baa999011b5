/* router/train_encoder: the encoder stage of a head. Private to router/. */
#ifndef SWITCHYARD_ROUTER_TRAIN_ENCODER_H
#define SWITCHYARD_ROUTER_TRAIN_ENCODER_H

#include "router/augment.h"
#include "router/head.h"
#include "router/train.h"

/* Texts with labels and weights, and their vectors. */
struct encoded {
    const struct sample *samples; /* borrowed */
    size_t count, width;
    float *vectors; /* [count, width] */
};
enum err_code encoded_make(const struct sample *samples, size_t count,
                           const struct router_train_options *opt, const struct progress *progress,
                           struct encoded *ret, size_t *add_encoded, struct err *e) BASE_NODISCARD;
void encoded_done(struct encoded *x);

/* What the stage adds to a head; everything is owned. */
struct encoder_stage {
    size_t labels, width, samples;
    float *matrix, *offset, *entitled;
    uint32_t *sample_of;
    int8_t *sample;
    float sample_scale, temperature, mix;
    uint64_t encoder_id;
};
/* Logistic regression on the vectors; `general_shift` is added to the generalist's offset. */
enum err_code stage_solve(const struct encoded *x, size_t labels, int general_idx,
                          const struct router_train_options *opt, const struct train_knobs *knobs,
                          const struct progress *progress, struct encoder_stage *ret,
                          struct err *e) BASE_NODISCARD;
/* Keep some vectors of each label, spread over its rows. */
void stage_keep_samples(const struct encoded *x, int general_idx, const struct train_knobs *knobs,
                        struct encoder_stage *s);
/* Temperature and per-label thresholds of the cascade from a set that neither stage of `h` has
 * learned from (or has: then they are as sure as training is). `h` has this stage in it. */
void stage_calibrate(const struct router_head *h, const struct encoded *x,
                     const struct train_knobs *knobs, struct encoder_stage *s);
void stage_put(const struct encoder_stage *s, struct head_parts *parts);
void stage_done(struct encoder_stage *s);

#endif
