/* Training the encoder stage: a linear head on the encoder's vectors. What it says is mixed with
 * the n-gram stage's probabilities when it decides (a product of experts: one reads words, the
 * other sense, and they fail on different prompts), so temperature and thresholds are fitted on the
 * mix. */
#include "router/train_encoder.h"
#include "router/calibrate.h"
#include "router/solver.h"
#include "router/vectors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum err_code encoded_make(const struct sample *samples, size_t count,
                           const struct router_train_options *opt, const struct progress *progress,
                           struct encoded *ret, size_t *add_encoded, struct err *e)
{
    struct router_turn *texts = mem_array(count + 1, sizeof(*texts));
    size_t width = opt->encoders[0].width, encoded = 0;
    for (size_t i = 0; i < count; i++)
        texts[i] = (struct router_turn){.text = samples[i].text, .len = samples[i].len};
    *ret = (struct encoded){.samples = samples, .count = count, .width = width};
    ret->vectors = mem_array(count + 1, width * sizeof(float));
    enum err_code code = vectors_make(opt->encoders, opt->encoders_count, texts, count,
                                      opt->cache_path, progress, ret->vectors, &encoded, e);
    *add_encoded += encoded;
    free(texts);
    if (code != ERR_OK)
        encoded_done(ret);
    return code;
}

void encoded_done(struct encoded *x)
{
    free(x->vectors);
    *x = (struct encoded){0};
}

/* The solver takes sparse rows; these have every column. */
static void dense_matrix(const struct encoded *x, struct sparse *m)
{
    m->rows = x->count;
    m->cols = x->width;
    m->row_start = mem_array(x->count + 1, sizeof(*m->row_start));
    m->by_row = mem_array(x->count * x->width + 1, sizeof(*m->by_row));
    for (size_t r = 0; r < x->count; r++) {
        m->row_start[r + 1] = (r + 1) * x->width;
        for (size_t c = 0; c < x->width; c++)
            m->by_row[r * x->width + c] =
                (struct sparse_entry){(uint32_t)c, x->vectors[r * x->width + c]};
    }
    sparse_transpose(m);
}

enum err_code stage_solve(const struct encoded *x, size_t labels, int general_idx,
                          const struct router_train_options *opt, const struct train_knobs *knobs,
                          const struct progress *progress, struct encoder_stage *ret, struct err *e)
{
    uint32_t *label = mem_array(x->count + 1, sizeof(*label));
    float *weight = mem_array(x->count + 1, sizeof(*weight));
    struct sparse m = {0};
    struct softmax_fit fit = {0};
    for (size_t i = 0; i < x->count; i++) {
        label[i] = x->samples[i].label;
        weight[i] = x->samples[i].weight;
    }
    dense_matrix(x, &m);
    const struct softmax_problem p = {.x = &m,
                                      .label = label,
                                      .weight = weight,
                                      .labels = labels,
                                      .l2 = knobs->encoder_l2,
                                      .iterations_max = knobs->encoder_iterations,
                                      .threads = opt->threads ? opt->threads : cpu_count_usable()};
    enum err_code code = softmax_solve(&p, progress, &fit, e);
    sparse_done(&m);
    free(label);
    free(weight);
    if (code != ERR_OK)
        return code;
    *ret = (struct encoder_stage){.labels = labels,
                                  .width = x->width,
                                  .temperature = 1.0f,
                                  .mix = (float)knobs->mix,
                                  .sample_scale = 1.0f,
                                  .encoder_id = opt->encoders[0].id};
    ret->matrix = mem_array(labels * x->width, sizeof(float));
    ret->offset = mem_array(labels, sizeof(float));
    ret->entitled = mem_array(labels, sizeof(float));
    for (size_t i = 0; i < labels; i++) {
        ret->offset[i] = fit.bias[i];
        ret->entitled[i] = 2.0f; /* never, until it is fitted */
        for (size_t c = 0; c < x->width; c++)
            ret->matrix[i * x->width + c] = fit.weights[c * fit.stride + i];
    }
    if (general_idx >= 0)
        ret->offset[general_idx] += (float)knobs->encoder_general_shift;
    free(fit.weights);
    return ERR_OK;
}

void stage_keep_samples(const struct encoded *x, int general_idx, const struct train_knobs *knobs,
                        struct encoder_stage *s)
{
    size_t *have = mem_array(s->labels, sizeof(*have)), *seen = mem_array(s->labels, sizeof(*seen));
    size_t most = 0;
    float top = 1e-6f;
    for (size_t i = 0; i < x->count; i++)
        have[x->samples[i].label]++;
    for (size_t i = 0; i < s->labels; i++)
        most += (int)i == general_idx ? knobs->general_samples : knobs->expert_samples;
    s->sample_of = mem_array(most + 1, sizeof(*s->sample_of));
    s->sample = mem_array(most + 1, x->width);
    for (size_t i = 0; i < x->count * x->width; i++)
        top = fmaxf(top, fabsf(x->vectors[i]));
    s->sample_scale = fminf(top / 127.0f, 1.0f);
    for (size_t i = 0; i < x->count; i++) {
        uint32_t label = x->samples[i].label;
        size_t want = (int)label == general_idx ? knobs->general_samples : knobs->expert_samples;
        size_t n = seen[label]++;
        bool kept = have[label] <= want || (n + 1) * want / have[label] > n * want / have[label];
        if (!kept)
            continue;
        for (size_t c = 0; c < x->width; c++)
            s->sample[s->samples * x->width + c] =
                (int8_t)lroundf(x->vectors[i * x->width + c] / s->sample_scale);
        s->sample_of[s->samples++] = label;
    }
    free(have);
    free(seen);
}

/* ---- calibration -------------------------------------------------------------------------------
 */

struct verdict {
    float confidence;
    bool right, mix_right; /* the n-gram stage alone, the mix */
};

static int compare_verdicts(const void *a, const void *b)
{
    const struct verdict *x = a, *y = b;
    return (x->confidence < y->confidence) - (x->confidence > y->confidence);
}

/* The lowest probability from which on the n-gram stage alone was right as often as the mix, and in
 * so many of a thousand cases: no prompt is answered cheaply at the price of accuracy. */
static float entitled_from(struct verdict *v, size_t count, double right_min)
{
    size_t right = 0, mix = 0;
    float from = 2.0f;
    qsort(v, count, sizeof(*v), compare_verdicts);
    for (size_t i = 0; i < count; i++) {
        right += v[i].right;
        mix += v[i].mix_right;
        if (i + 1 < count && v[i + 1].confidence == v[i].confidence)
            continue;
        if (i + 1 >= 20 && right >= mix && (double)right >= right_min * (double)(i + 1))
            from = v[i].confidence;
    }
    return from;
}

static size_t best_of(const float *p, size_t labels)
{
    size_t best = 0;
    for (size_t i = 1; i < labels; i++)
        if (p[i] > p[best])
            best = i;
    return best;
}

void stage_calibrate(const struct router_head *h, const struct encoded *x,
                     const struct train_knobs *knobs, struct encoder_stage *s)
{
    size_t labels = s->labels;
    float *ngram = mem_array((x->count + 1) * labels, sizeof(*ngram));
    float *logits = mem_array((x->count + 1) * labels, sizeof(*logits));
    uint32_t *truth = mem_array(x->count + 1, sizeof(*truth));
    struct verdict *v = mem_array(x->count + 1, sizeof(*v));
    struct text_scratch *text = text_scratch_open(&h->header.geometry);
    for (size_t i = 0; i < x->count; i++) {
        size_t count;
        const struct sample *row = &x->samples[i];
        const struct text_feature *f = text_vector(text, row->text, row->len, &count);
        float *p = ngram + i * labels;
        head_logits(h, f, count, p);
        calibrate_softmax(p, labels, (double)h->header.temperature, p);
        head_encoder_logits(h, x->vectors + i * x->width, p, logits + i * labels);
        truth[i] = row->label;
    }
    s->temperature = (float)calibrate_temperature(logits, labels, truth, x->count);
    for (size_t label = 0; label < labels; label++) {
        size_t n = 0;
        for (size_t i = 0; i < x->count; i++) {
            const float *p = ngram + i * labels;
            if (best_of(p, labels) == label)
                v[n++] =
                    (struct verdict){.confidence = p[label],
                                     .right = truth[i] == label,
                                     .mix_right = best_of(logits + i * labels, labels) == truth[i]};
        }
        s->entitled[label] = entitled_from(v, n, knobs->entitled_right);
    }
    text_scratch_close(&text);
    free(ngram);
    free(logits);
    free(truth);
    free(v);
}

void stage_put(const struct encoder_stage *s, struct head_parts *parts)
{
    parts->header.width = (uint32_t)s->width;
    parts->header.samples = (uint32_t)s->samples;
    parts->header.encoder_id = s->encoder_id;
    parts->header.encoder_temperature = s->temperature;
    parts->header.mix = s->mix;
    parts->header.sample_scale = s->sample_scale;
    parts->matrix = s->matrix;
    parts->offset = s->offset;
    parts->entitled = s->entitled;
    parts->sample_of = s->sample_of;
    parts->samples = s->sample;
}

void stage_done(struct encoder_stage *s)
{
    free(s->matrix);
    free(s->offset);
    free(s->entitled);
    free(s->sample_of);
    free(s->sample);
    *s = (struct encoder_stage){0};
}
