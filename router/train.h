/* router/train: the knobs behind router_train, for its tests and for measuring. Private to router/.
 */
#ifndef SWITCHYARD_ROUTER_TRAIN_H
#define SWITCHYARD_ROUTER_TRAIN_H

#include "router/augment.h"
#include "router/text.h"

/* What router_train chooses for itself. Every default was measured on held-out wordings of the
 * training data, never on a test set. */
struct train_knobs {
    struct augment_options augment;
    uint32_t rows_min; /* a feature must occur in so many rows */
    /* Added to the logit of the generalist. Below 0: in training it has the most rows and the
     * widest range of them, so what no row is like would otherwise always be its. */
    double general_shift;
    double threshold_max; /* highest the head's threshold may be set to */
    double stay;          /* see head.h */
    /* The encoder stage. */
    struct augment_options encoder_augment; /* no words are left out: the encoder reads sentences */
    double encoder_l2, encoder_general_shift, mix;
    uint32_t encoder_iterations;
    double entitled_right; /* share right among what the n-gram stage answers alone */
    uint32_t general_samples, expert_samples;
    uint32_t holdout_every; /* of the given wordings every n-th is kept for calibration; 0 = none */
};
struct train_knobs train_knobs_default(void);

enum err_code train_with(const struct router_data *train, const struct router_data *val,
                         const struct router_train_options *opt, const struct train_knobs *knobs,
                         const struct progress *progress, struct buf *ret_head,
                         struct router_train_report *report, struct err *e) BASE_NODISCARD;

#endif
