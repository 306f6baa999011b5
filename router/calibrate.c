/* Temperature scaling and the calibration error. */
#include "router/calibrate.h"

#include <math.h>

#define ECE_BINS 15

void calibrate_softmax(const float *logits, size_t labels, double temperature, float *ret)
{
    float top = logits[0], inverse = (float)(1.0 / temperature);
    for (size_t i = 1; i < labels; i++)
        top = BASE_MAX(top, logits[i]);
    float sum = 0.0f;
    for (size_t i = 0; i < labels; i++) {
        ret[i] = expf((logits[i] - top) * inverse);
        sum += ret[i];
    }
    for (size_t i = 0; i < labels; i++)
        ret[i] /= sum;
}

static double mean_loss(const float *logits, size_t labels, const uint32_t *truth, size_t count,
                        double temperature)
{
    double loss = 0.0, soft = 1.0 / ((double)count + 2.0);
    for (size_t r = 0; r < count; r++) {
        const float *z = logits + r * labels;
        double top = (double)z[0], sum = 0.0, mean = 0.0;
        for (size_t i = 1; i < labels; i++)
            top = fmax(top, (double)z[i]);
        for (size_t i = 0; i < labels; i++) {
            sum += exp(((double)z[i] - top) / temperature);
            mean += (double)z[i] / (double)labels;
        }
        double target = (1.0 - soft) * (double)z[truth[r]] + soft * mean;
        loss += log(sum) - (target - top) / temperature;
    }
    return loss / (double)count;
}

/* Golden-section search over log temperature, in which the loss has one minimum. */
double calibrate_temperature(const float *logits, size_t labels, const uint32_t *truth,
                             size_t count)
{
    if (count == 0)
        return 1.0;
    const double golden = 0.6180339887498949;
    double low = log(0.05), high = log(20.0);
    double a = high - golden * (high - low), b = low + golden * (high - low);
    double loss_a = mean_loss(logits, labels, truth, count, exp(a));
    double loss_b = mean_loss(logits, labels, truth, count, exp(b));
    for (int step = 0; step < 30; step++) {
        if (loss_a <= loss_b) {
            high = b;
            b = a;
            loss_b = loss_a;
            a = high - golden * (high - low);
            loss_a = mean_loss(logits, labels, truth, count, exp(a));
        } else {
            low = a;
            a = b;
            loss_a = loss_b;
            b = low + golden * (high - low);
            loss_b = mean_loss(logits, labels, truth, count, exp(b));
        }
    }
    return exp((low + high) / 2.0);
}

double calibrate_ece(const float *confidence, const bool *right, size_t count)
{
    double sum_confidence[ECE_BINS] = {0.0}, sum_right[ECE_BINS] = {0.0}, error = 0.0;
    for (size_t i = 0; i < count; i++) {
        size_t bin = BASE_MIN((size_t)(confidence[i] * (float)ECE_BINS), (size_t)ECE_BINS - 1);
        sum_confidence[bin] += (double)confidence[i];
        sum_right[bin] += right[i] ? 1.0 : 0.0;
    }
    for (size_t bin = 0; bin < ECE_BINS; bin++)
        error += fabs(sum_confidence[bin] - sum_right[bin]);
    return count > 0 ? error / (double)count : 0.0;
}
