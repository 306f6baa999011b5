/* router/calibrate: from logits to probabilities that mean what they say. Private to router/. */
#ifndef SWITCHYARD_ROUTER_CALIBRATE_H
#define SWITCHYARD_ROUTER_CALIBRATE_H

#include "base/base.h"

/* probability = softmax(logits / temperature), [labels]; may be done in place. */
void calibrate_softmax(const float *logits, size_t labels, double temperature, float *ret);

/* Temperature in [0.05, 20] of the least negative log likelihood (Guo et al. 2017), with targets
 * softened by 1 / (count + 2) as Platt (1999) does, so that a few rows that are all right do not
 * make a head that is sure of everything. logits [count, labels] row-major, truth [count]. 1 if
 * there are no rows. */
double calibrate_temperature(const float *logits, size_t labels, const uint32_t *truth,
                             size_t count);

/* Expected calibration error, 15 equal-width bins: confidence [count] in [0, 1], right [count]. */
double calibrate_ece(const float *confidence, const bool *right, size_t count);

#endif
