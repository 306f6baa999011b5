/* Training a head: labels -> augmented rows -> features -> logistic regression -> int8 ->
 * temperature.
 *
 * Same data and options give the same bytes: rows are taken in file order, random draws come from
 * the seed, and the solver's sums do not depend on the number of threads. */
#include "router/train.h"
#include "router/calibrate.h"
#include "router/head.h"
#include "router/solver.h"
#include "router/train_encoder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GENERAL_LABEL "general"
#define ANY_LABEL "any"
#define HEAD_BYTES_DEFAULT (4 * BASE_MIB)
#define L2_DEFAULT 3e-6
#define ITERATIONS_DEFAULT 50 /* measured: 120 decide no better */
#define HOLDOUT_DEFAULT 0.1
/* Weights of all features and labels during training: 19 vectors of this length at 4 bytes. */
#define PARAMS_MAX ((size_t)16 << 20)
#define ROWS_MAX ((size_t)4 << 20)

struct train_knobs train_knobs_default(void)
{
    struct train_knobs k = {
        .augment = augment_options_default(),
        .rows_min = 2,
        .general_shift = -0.6,
        .threshold_max = 0.5,
        .stay = 0.2,
        .encoder_augment = augment_options_default(),
        .encoder_l2 = 2.5e-5,
        .encoder_general_shift = -0.3,
        .mix = 1.0,
        .encoder_iterations = 60,
        .entitled_right = 0.995,
        .general_samples = 600,
        .expert_samples = 60,
        .holdout_every = 4,
    };
    k.encoder_augment.drop_copies = 0;
    k.encoder_augment.fill_copies = 4;
    k.encoder_augment.swap_copies = 3;
    return k;
}

/* Everything one training owns. */
struct trainer {
    const struct router_train_options *opt;
    const struct train_knobs *knobs;
    const struct progress *progress;
    char (*labels)[ROUTER_NAME_MAX]; /* sorted */
    size_t labels_count;
    int general_idx;
    const struct router_row **rows; /* to learn from */
    uint32_t *row_label;
    const struct router_row **val_rows; /* to calibrate with */
    size_t rows_count, val_count;
    struct sample_list samples;
    struct text_geometry geometry;
    uint32_t *column_of;  /* [space] column + 1, 0 = not used */
    uint32_t *feature_of; /* [columns] */
    float *prior;         /* [columns] */
    struct sparse matrix;
    struct softmax_fit fit;
    struct router_head *head;
    struct encoder_stage stage; /* width 0 = none */
    size_t encoded;             /* texts whose vectors were not in the cache */
};

/* ---- labels and rows ----------------------------------------------------------------------------
 */

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

static int find_label(const struct trainer *t, const char *name)
{
    const char *found =
        bsearch(name, t->labels, t->labels_count, sizeof(*t->labels), compare_names);
    return found ? (int)((found - t->labels[0]) / ROUTER_NAME_MAX) : -1;
}

static bool is_any(const struct router_row *row)
{
    return strcmp(row->expert, ANY_LABEL) == 0;
}

static enum err_code collect_labels(struct trainer *t, const struct router_data *train,
                                    struct err *e)
{
    t->labels = mem_array(train->count + 1, sizeof(*t->labels));
    size_t n = 0;
    for (size_t i = 0; i < train->count; i++) {
        const char *name = train->rows[i].expert;
        if (strlen(name) == 0 || strlen(name) >= ROUTER_NAME_MAX || !utf8_valid(name, strlen(name)))
            return err_set(e, ERR_INVALID, "row %zu: \"%.40s\" cannot be an expert's name", i + 1,
                           name);
        if (!is_any(&train->rows[i]))
            memcpy(t->labels[n++], name, strlen(name) + 1);
    }
    qsort(t->labels, n, sizeof(*t->labels), compare_names);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(t->labels[i], t->labels[t->labels_count - 1]) != 0)
            memmove(t->labels[t->labels_count++], t->labels[i], ROUTER_NAME_MAX);
    if (t->labels_count < 2)
        return err_set(e, ERR_INVALID, "training needs rows of two experts at least, found %zu",
                       t->labels_count);
    if (t->labels_count > ROUTER_LABELS_MAX)
        return err_set(e, ERR_INVALID, "%zu experts in the data, at most %d are possible",
                       t->labels_count, ROUTER_LABELS_MAX);
    t->general_idx = find_label(t, GENERAL_LABEL);
    return ERR_OK;
}

/* Is this row of the training data kept for calibration? Every n-th of its label is, so that a
 * label with few rows keeps them all; a wording with a hole in it is no prompt. */
static bool is_held_out(const struct trainer *t, const struct router_row *row, size_t *seen)
{
    double holdout = t->opt->holdout > 0.0 ? BASE_MIN(t->opt->holdout, 0.5) : HOLDOUT_DEFAULT;
    return !augment_is_wording(row) && ++*seen % (size_t)lround(1.0 / holdout) == 0;
}

/* Rows to learn from and rows to calibrate with: those of `val`, or some of `train`. */
static enum err_code split_rows(struct trainer *t, const struct router_data *train,
                                const struct router_data *val, struct err *e)
{
    size_t *seen = mem_array(t->labels_count, sizeof(*seen));
    t->rows = mem_array(train->count, sizeof(*t->rows));
    t->row_label = mem_array(train->count, sizeof(*t->row_label));
    t->val_rows = mem_array(train->count + (val ? val->count : 0), sizeof(*t->val_rows));
    for (size_t i = 0; i < train->count; i++) {
        const struct router_row *row = &train->rows[i];
        int label = is_any(row) ? -1 : find_label(t, row->expert);
        if (label < 0)
            continue;
        if (!val && is_held_out(t, row, &seen[label])) {
            t->val_rows[t->val_count++] = row;
            continue;
        }
        t->row_label[t->rows_count] = (uint32_t)label;
        t->rows[t->rows_count++] = row;
    }
    free(seen);
    for (size_t i = 0; val && i < val->count; i++)
        if (find_label(t, val->rows[i].expert) >= 0)
            t->val_rows[t->val_count++] = &val->rows[i];
    if (t->val_count == 0) { /* too few to spare any */
        memcpy(t->val_rows, t->rows, t->rows_count * sizeof(*t->rows));
        t->val_count = t->rows_count;
    }
    if (t->rows_count > ROWS_MAX)
        return err_set(e, ERR_INVALID, "%zu rows, at most %zu are possible", t->rows_count,
                       ROWS_MAX);
    return ERR_OK;
}

/* ---- features
 * -------------------------------------------------------------------------------------- */

/* The hash spaces are wide, since a feature that was never seen costs one bit; they shrink only
 * when even the bits would not fit. */
static struct text_geometry choose_geometry(const struct router_train_options *opt,
                                            size_t max_bytes)
{
    struct text_geometry g = text_geometry_default();
    while (g.word_bits > TEXT_BITS_MIN && text_space(&g) / 8 > max_bytes / 8) {
        g.word_bits--;
        g.char_bits--;
    }
    if (opt->word_bits)
        g.word_bits = opt->word_bits;
    if (opt->char_bits)
        g.char_bits = opt->char_bits;
    return g;
}

static size_t max_bytes_of(const struct trainer *t)
{
    return t->opt->max_bytes ? t->opt->max_bytes : HEAD_BYTES_DEFAULT;
}

/* Columns that both the file and the solver's memory allow. */
static size_t columns_max(const struct trainer *t)
{
    size_t fixed, room = 0;
    size_t stage = 0, samples = 0;
    if (t->opt->encoders_count > 0)
        samples = t->knobs->general_samples + t->labels_count * t->knobs->expert_samples;
    if (head_bytes(&t->geometry, t->labels_count, 0, &fixed) &&
        head_encoder_bytes(t->labels_count, t->opt->encoders_count ? t->opt->encoders[0].width : 0,
                           samples, &stage) &&
        size_add(fixed, stage, &fixed) && fixed < max_bytes_of(t))
        room = (max_bytes_of(t) - fixed) / t->labels_count;
    return BASE_MIN(room, PARAMS_MAX / t->labels_count);
}

/* Rows per feature; copies with words left out tell nothing new about what occurs. */
static uint32_t *count_rows(struct trainer *t, struct text_scratch *text)
{
    uint32_t *rows = mem_array(text_space(&t->geometry), sizeof(*rows));
    for (size_t i = 0; i < t->samples.count; i++) {
        const struct sample *s = &t->samples.items[i];
        size_t count;
        const struct text_feature *f = text_vector(text, s->text, s->len, &count);
        for (size_t j = 0; j < count && s->counted; j++)
            rows[f[j].idx]++;
    }
    return rows;
}

/* Smallest number of rows at which no more than `most` features remain. */
static uint32_t rows_cutoff(const uint32_t *rows, size_t space, uint32_t rows_min, size_t most)
{
    for (uint32_t cutoff = BASE_MAX(rows_min, 1u);; cutoff++) {
        size_t kept = 0;
        for (size_t i = 0; i < space; i++)
            kept += rows[i] >= cutoff;
        if (kept <= most)
            return cutoff;
    }
}

/* How far from zero a feature's weights may go, relative to the others: what occurs everywhere
 * ("the", "in") should not decide, even where it happens to. Training sees value * prior, the head
 * gets weight * prior, so that a decision pays nothing for it. Exponent measured on held-out
 * wordings. */
static float prior_of(uint32_t rows, size_t rows_total)
{
    return (float)pow(log((double)rows_total / (double)rows + 1.0) / 5.0, 1.5);
}

static void choose_columns(struct trainer *t, struct text_scratch *text)
{
    size_t space = text_space(&t->geometry);
    uint32_t *rows = count_rows(t, text);
    uint32_t cutoff = rows_cutoff(rows, space, t->knobs->rows_min, columns_max(t));
    t->column_of = mem_array(space, sizeof(*t->column_of));
    t->feature_of = mem_array(space, sizeof(*t->feature_of));
    t->prior = mem_array(space, sizeof(*t->prior));
    for (size_t i = 0; i < space; i++) {
        if (rows[i] < cutoff)
            continue;
        t->feature_of[t->matrix.cols] = (uint32_t)i;
        t->prior[t->matrix.cols] = prior_of(rows[i], t->samples.count);
        t->column_of[i] = (uint32_t)++t->matrix.cols;
    }
    free(rows);
}

static void build_matrix(struct trainer *t, struct text_scratch *text)
{
    struct sparse *m = &t->matrix;
    size_t cap = 0, used = 0;
    m->rows = t->samples.count;
    m->row_start = mem_array(m->rows + 1, sizeof(*m->row_start));
    for (size_t r = 0; r < m->rows; r++) {
        size_t count;
        const struct text_feature *f =
            text_vector(text, t->samples.items[r].text, t->samples.items[r].len, &count);
        if (used + count > cap) {
            cap = 2 * (used + count);
            m->by_row = mem_grow(m->by_row, cap, sizeof(*m->by_row));
        }
        for (size_t i = 0; i < count; i++) {
            uint32_t column = t->column_of[f[i].idx];
            if (column > 0)
                m->by_row[used++] =
                    (struct sparse_entry){column - 1, f[i].value * t->prior[column - 1]};
        }
        m->row_start[r + 1] = used;
    }
    if (!m->by_row)
        m->by_row = mem_array(1, sizeof(*m->by_row));
    sparse_transpose(m);
}

static enum err_code solve(struct trainer *t, struct err *e)
{
    size_t rows = t->samples.count;
    uint32_t *label = mem_array(rows, sizeof(*label));
    float *weight = mem_array(rows, sizeof(*weight));
    for (size_t i = 0; i < rows; i++) {
        label[i] = t->samples.items[i].label;
        weight[i] = t->samples.items[i].weight;
    }
    struct softmax_problem p = {
        .x = &t->matrix,
        .label = label,
        .weight = weight,
        .labels = t->labels_count,
        .l2 = t->opt->l2 > 0.0 ? t->opt->l2 : L2_DEFAULT,
        .iterations_max = t->opt->iterations ? t->opt->iterations : ITERATIONS_DEFAULT,
        .threads = t->opt->threads ? t->opt->threads : cpu_count_usable(),
    };
    enum err_code code = softmax_solve(&p, t->progress, &t->fit, e);
    for (size_t c = 0; code == ERR_OK && c < t->matrix.cols; c++)
        for (size_t i = 0; i < t->labels_count; i++)
            t->fit.weights[c * t->fit.stride + i] *= t->prior[c];
    free(label);
    free(weight);
    return code;
}

/* ---- the head
 * ---------------------------------------------------------------------------------------- */

/* Softmax does not see what all labels share; without it the int8 range is better used. */
static void centre_weights(struct trainer *t)
{
    for (size_t c = 0; c <= t->matrix.cols; c++) { /* the last "column" is the bias */
        float *row = t->fit.weights + c * t->fit.stride;
        double mean = 0.0;
        for (size_t i = 0; i < t->labels_count; i++)
            mean += (double)row[i] / (double)t->labels_count;
        for (size_t i = 0; i < t->labels_count; i++)
            row[i] -= (float)mean;
    }
}

static void find_scales(const struct trainer *t, float *scale)
{
    for (size_t c = 0; c < t->matrix.cols; c++)
        for (size_t i = 0; i < t->labels_count; i++)
            scale[i] = fmaxf(scale[i], fabsf(t->fit.weights[c * t->fit.stride + i]));
    for (size_t i = 0; i < t->labels_count; i++)
        scale[i] = scale[i] > 0.0f ? scale[i] / 127.0f : 1.0f;
}

/* int8 rows of all columns that are not zero throughout; returns how many. */
static size_t quantise(const struct trainer *t, const float *scale, uint64_t *present,
                       int8_t *weights)
{
    size_t rows = 0, labels = t->labels_count;
    for (size_t c = 0; c < t->matrix.cols; c++) {
        bool any = false;
        for (size_t i = 0; i < labels; i++) {
            long q = lroundf(t->fit.weights[c * t->fit.stride + i] / scale[i]);
            weights[rows * labels + i] = (int8_t)BASE_MAX(-127L, BASE_MIN(127L, q));
            any = any || q != 0;
        }
        if (!any)
            continue;
        present[t->feature_of[c] / 64] |= (uint64_t)1 << (t->feature_of[c] % 64);
        rows++;
    }
    return rows;
}

/* Write the head with this calibration and read it back: what is measured is what is shipped. */
static enum err_code build_head(struct trainer *t, double temperature, double threshold,
                                struct buf *ret, struct err *e)
{
    size_t labels = t->labels_count;
    float *scale = mem_array(labels, sizeof(*scale)), *bias = mem_array(labels, sizeof(*bias));
    uint64_t *present = mem_array(text_space(&t->geometry) / 64, sizeof(*present));
    int8_t *weights = mem_array((t->matrix.cols + 1) * labels, 1);
    find_scales(t, scale);
    memcpy(bias, t->fit.bias, labels * sizeof(*bias));
    if (t->general_idx >= 0)
        bias[t->general_idx] += (float)t->knobs->general_shift;
    struct head_parts parts = {
        .header = {.geometry = t->geometry,
                   .labels = (uint32_t)labels,
                   .features = (uint32_t)quantise(t, scale, present, weights),
                   .general_idx = t->general_idx,
                   .temperature = (float)temperature,
                   .threshold = (float)threshold,
                   .stay = (float)t->knobs->stay},
        .labels = (const char(*)[ROUTER_NAME_MAX])t->labels,
        .bias = bias,
        .scale = scale,
        .present = present,
        .weights = weights,
    };
    if (t->stage.width > 0)
        stage_put(&t->stage, &parts);
    head_write(&parts, ret);
    free(scale);
    free(bias);
    free(present);
    free(weights);
    router_head_close(&t->head);
    return router_head_parse(ret->data, ret->len, &t->head, e);
}

static double fit_temperature(const struct trainer *t)
{
    size_t labels = t->labels_count;
    float *logits = mem_array((t->val_count + 1) * labels, sizeof(*logits));
    uint32_t *truth = mem_array(t->val_count + 1, sizeof(*truth));
    struct text_scratch *text = text_scratch_open(&t->geometry);
    for (size_t i = 0; i < t->val_count; i++) {
        const char *last = augment_last_turn(t->val_rows[i]->text);
        size_t count;
        const struct text_feature *f = text_vector(text, last, strlen(last), &count);
        head_logits(t->head, f, count, logits + i * labels);
        truth[i] = (uint32_t)find_label(t, t->val_rows[i]->expert);
    }
    double temperature = calibrate_temperature(logits, labels, truth, t->val_count);
    text_scratch_close(&text);
    free(logits);
    free(truth);
    return temperature;
}

static enum err_code measure(const struct trainer *t, const struct router_row **rows, size_t count,
                             double threshold, const struct router_encoder *encoder,
                             double *ret_accuracy, double *ret_ece, struct err *e)
{
    *ret_accuracy = *ret_ece = (double)NAN;
    if (count == 0)
        return ERR_OK;
    struct router_data data = {.rows = mem_array(count, sizeof(*data.rows)), .count = count};
    for (size_t i = 0; i < count; i++)
        data.rows[i] = *rows[i]; /* borrowed strings */
    struct router_options opt = {.threshold = threshold, .generalist_idx = -1, .encoder = encoder};
    struct router_eval_report r = {0};
    enum err_code code = router_eval(t->head, &data, &opt, &r, e);
    if (code == ERR_OK) {
        *ret_accuracy = r.accuracy;
        *ret_ece = r.ece;
    }
    router_eval_report_done(&r);
    free(data.rows);
    return code;
}

/* The highest threshold that costs no more than one in a thousand of the validation rows: a
 * doubtful expert answers in the wrong form, the generalist answers anyway. */
static enum err_code fit_threshold(const struct trainer *t, double *ret, struct err *e)
{
    const double cost_max = 1e-3, step = 0.05;
    double best = 0.0, ignored, threshold = 0.0;
    enum err_code code = ERR_OK;
    for (int i = 0; code == ERR_OK && step * i <= t->knobs->threshold_max + 1e-9; i++) {
        double accuracy;
        code = measure(t, t->val_rows, t->val_count, step * i, NULL, &accuracy, &ignored, e);
        best = fmax(best, accuracy);
        if (accuracy >= best - cost_max)
            threshold = step * i;
    }
    *ret = threshold;
    return code;
}

static enum err_code report_on(struct trainer *t, size_t head_len, uint64_t started_ns,
                               struct router_train_report *report, struct err *e)
{
    double ignored;
    struct router_train_report r = {
        .rows = t->rows_count,
        .labels = t->labels_count,
        .features = t->head->header.features,
        .head_bytes = head_len,
        .encoded = t->encoded,
        .temperature = (double)t->head->header.temperature,
        .threshold = (double)t->head->header.threshold,
    };
    enum err_code code =
        measure(t, t->rows, t->rows_count, (double)NAN, NULL, &r.train_accuracy, &ignored, e);
    if (code == ERR_OK)
        code = measure(t, t->val_rows, t->val_count, (double)NAN,
                       t->opt->encoders_count > 0 ? &t->opt->encoders[0] : NULL, &r.val_accuracy,
                       &r.ece, e);
    r.seconds = (double)(clock_ns() - started_ns) / 1e9;
    if (code == ERR_OK && report)
        *report = r;
    return code;
}

/* ---- steps in order
 * ------------------------------------------------------------------------------------ */

static void trainer_done(struct trainer *t);

static enum err_code check_options(const struct trainer *t, struct err *e)
{
    if (!text_geometry_valid(&t->geometry))
        return err_set(e, ERR_INVALID, "word and character bits must be between %d and %d",
                       TEXT_BITS_MIN, TEXT_BITS_MAX);
    if (columns_max(t) == 0)
        return err_set(
            e, ERR_INVALID,
            "a head of %zu bytes has no room for weights of %zu experts; allow more bytes",
            max_bytes_of(t), t->labels_count);
    return ERR_OK;
}

static enum err_code learn(struct trainer *t, struct err *e)
{
    struct augment_options augment = t->knobs->augment;
    augment.general_idx = t->general_idx;
    augment_rows(t->rows, t->row_label, t->rows_count, &augment, &t->samples);
    struct text_scratch *text = text_scratch_open(&t->geometry);
    choose_columns(t, text);
    build_matrix(t, text);
    text_scratch_close(&text);
    return solve(t, e);
}

/* Each number is fitted on a head that has the ones before it, since that is what it will judge. */
static enum err_code calibrate(struct trainer *t, struct buf *head, struct err *e)
{
    double temperature = 1.0, threshold = 0.0;
    centre_weights(t);
    enum err_code code = build_head(t, temperature, threshold, head, e);
    if (code != ERR_OK)
        return code;
    temperature = fit_temperature(t);
    code = build_head(t, temperature, threshold, head, e);
    if (code == ERR_OK)
        code = fit_threshold(t, &threshold, e);
    return code == ERR_OK ? build_head(t, temperature, threshold, head, e) : code;
}

/* ---- the encoder stage -------------------------------------------------------------------------
 */

/* The rows that both stages of a head learn from or are measured with, as samples. */
static void take_samples(struct trainer *t, const struct router_row *const *rows,
                         const uint32_t *label, size_t count, struct sample_list *ret)
{
    struct augment_options augment = t->knobs->encoder_augment;
    augment.seed += t->opt->seed;
    augment.general_idx = t->general_idx;
    augment_rows(rows, label, count, &augment, ret);
}

static enum err_code fit_stage(struct trainer *t, struct err *e)
{
    struct sample_list samples = {0};
    struct encoded x = {0};
    take_samples(t, t->rows, t->row_label, t->rows_count, &samples);
    enum err_code code =
        encoded_make(samples.items, samples.count, t->opt, t->progress, &x, &t->encoded, e);
    if (code == ERR_OK)
        code = stage_solve(&x, t->labels_count, t->general_idx, t->opt, t->knobs, t->progress,
                           &t->stage, e);
    if (code == ERR_OK)
        stage_keep_samples(&x, t->general_idx, t->knobs, &t->stage);
    encoded_done(&x);
    sample_list_done(&samples);
    return code;
}

/* Every n-th given wording, so that calibration sees requests in words that were not learned. */
static bool is_held_wording(const struct trainer *t, const struct router_row *row, size_t *seen)
{
    return t->knobs->holdout_every > 0 && strcmp(row->source, AUGMENT_SOURCE_WORDING) == 0 &&
           ++*seen % t->knobs->holdout_every == 0;
}

/* A head like t's that has not seen the held wordings: what it is unsure of, t's would have been on
 * wordings of other people. */
static enum err_code open_shadow(struct trainer *t, struct trainer *shadow, struct err *e)
{
    size_t seen = 0;
    struct buf head = {0};
    *shadow = (struct trainer){.opt = t->opt,
                               .knobs = t->knobs,
                               .progress = t->progress,
                               .labels_count = t->labels_count,
                               .general_idx = t->general_idx,
                               .geometry = t->geometry,
                               .val_count = t->val_count};
    shadow->labels = mem_array(t->labels_count, sizeof(*t->labels));
    memcpy(shadow->labels, t->labels, t->labels_count * sizeof(*t->labels));
    shadow->rows = mem_array(t->rows_count + 1, sizeof(*shadow->rows));
    shadow->row_label = mem_array(t->rows_count + 1, sizeof(*shadow->row_label));
    shadow->val_rows = mem_array(t->val_count + 1, sizeof(*shadow->val_rows));
    memcpy(shadow->val_rows, t->val_rows, t->val_count * sizeof(*t->val_rows));
    for (size_t i = 0; i < t->rows_count; i++)
        if (!is_held_wording(t, t->rows[i], &seen)) {
            shadow->row_label[shadow->rows_count] = t->row_label[i];
            shadow->rows[shadow->rows_count++] = t->rows[i];
        }
    enum err_code code = learn(shadow, e);
    if (code == ERR_OK)
        code = fit_stage(shadow, e);
    if (code == ERR_OK)
        code = calibrate(shadow, &head, e);
    t->encoded += shadow->encoded;
    buf_done(&head);
    return code;
}

/* Validation rows, and the held wordings around the inputs that there are. */
static enum err_code calibration_set(struct trainer *t, struct sample_list *ret, struct err *e)
{
    size_t seen = 0, count = 0;
    const struct router_row **rows = mem_array(t->rows_count + t->val_count + 1, sizeof(*rows));
    uint32_t *label = mem_array(t->rows_count + t->val_count + 1, sizeof(*label));
    struct router_row *plain = mem_array(t->val_count + 1, sizeof(*plain));
    for (size_t i = 0; i < t->val_count; i++) {
        plain[i] = *t->val_rows[i];
        rows[count] = &plain[i];
        label[count++] = (uint32_t)find_label(t, plain[i].expert);
    }
    for (size_t i = 0; i < t->rows_count; i++)
        if (is_held_wording(t, t->rows[i], &seen)) {
            rows[count] = t->rows[i];
            label[count++] = t->row_label[i];
        }
    struct sample_list all = {0};
    take_samples(t, rows, label, count, &all);
    *ret = all;
    free(rows);
    free(label);
    free(plain);
    return all.count > 0 ? ERR_OK : err_set(e, ERR_INVALID, "no rows to calibrate with");
}

/* Temperature and thresholds of the cascade for wordings that are new to it. */
static enum err_code calibrate_stage(struct trainer *t, struct err *e)
{
    struct trainer shadow = {0};
    struct sample_list samples = {0};
    struct encoded x = {0};
    bool held = t->knobs->holdout_every > 0;
    enum err_code code = held ? open_shadow(t, &shadow, e) : ERR_OK;
    if (code == ERR_OK)
        code = calibration_set(t, &samples, e);
    if (code == ERR_OK)
        code = encoded_make(samples.items, samples.count, t->opt, t->progress, &x, &t->encoded, e);
    if (code == ERR_OK)
        stage_calibrate(held ? shadow.head : t->head, &x, t->knobs, &t->stage);
    encoded_done(&x);
    sample_list_done(&samples);
    trainer_done(&shadow);
    return code;
}

/* After the n-gram stage: the same head with both. */
static enum err_code add_stage(struct trainer *t, struct buf *head, struct err *e)
{
    double temperature = (double)t->head->header.temperature;
    double threshold = (double)t->head->header.threshold;
    enum err_code code = fit_stage(t, e);
    if (code == ERR_OK)
        code = build_head(t, temperature, threshold, head, e);
    if (code == ERR_OK)
        code = calibrate_stage(t, e);
    return code == ERR_OK ? build_head(t, temperature, threshold, head, e) : code;
}

static void trainer_done(struct trainer *t)
{
    free(t->labels);
    free(t->rows);
    free(t->row_label);
    free(t->val_rows);
    sample_list_done(&t->samples);
    free(t->column_of);
    free(t->feature_of);
    free(t->prior);
    sparse_done(&t->matrix);
    free(t->fit.weights);
    router_head_close(&t->head);
    stage_done(&t->stage);
}

enum err_code train_with(const struct router_data *train, const struct router_data *val,
                         const struct router_train_options *opt, const struct train_knobs *knobs,
                         const struct progress *progress, struct buf *ret_head,
                         struct router_train_report *report, struct err *e)
{
    uint64_t started_ns = clock_ns();
    struct trainer t = {.opt = opt, .knobs = knobs, .progress = progress};
    struct buf head = {0};
    enum err_code code = collect_labels(&t, train, e);
    if (code == ERR_OK)
        code = split_rows(&t, train, val, e);
    t.geometry = choose_geometry(opt, max_bytes_of(&t));
    if (code == ERR_OK)
        code = check_options(&t, e);
    if (code == ERR_OK)
        code = learn(&t, e);
    if (code == ERR_OK)
        code = calibrate(&t, &head, e);
    if (code == ERR_OK && opt->encoders_count > 0)
        code = add_stage(&t, &head, e);
    if (code == ERR_OK)
        code = report_on(&t, head.len, started_ns, report, e);
    trainer_done(&t);
    if (code != ERR_OK) {
        buf_done(&head);
        return code;
    }
    buf_done(ret_head);
    *ret_head = head;
    return ERR_OK;
}

enum err_code router_train(const struct router_data *train, const struct router_data *val,
                           const struct router_train_options *opt, const struct progress *progress,
                           struct buf *ret_head, struct router_train_report *report, struct err *e)
{
    static const struct router_train_options none;
    struct train_knobs knobs = train_knobs_default();
    const struct router_train_options *given = opt ? opt : &none;
    knobs.augment.seed += given->seed;
    return train_with(train, val, given, &knobs, progress, ret_head, report, e);
}
