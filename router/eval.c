/* How good a head is on labelled rows: accuracy, calibration, which way it fails, time per
 * decision. */
#include "router/head.h"
#include "router/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TURNS_MAX 64
#define LABEL_ANY "any"

/* One decided row. */
struct outcome {
    float confidence;
    int32_t truth; /* label index, -1 = the head does not know the label */
    int32_t answer;
    bool right;      /* the answer */
    bool best_right; /* the best label, which is what the confidence is about */
    bool abstained, counted;
    enum router_stage stage;
};

struct evaluation {
    const struct router_head *h;
    struct outcome *outcomes; /* [count] */
    uint64_t *latency_ns;     /* [count] */
    size_t count, counted;
};

static int label_find(const struct router_head *h, const char *name)
{
    for (size_t i = 0; i < h->header.labels; i++)
        if (strcmp(h->labels[i], name) == 0)
            return (int)i;
    return -1;
}

/* The last TURNS_MAX turns of a row's text. */
static size_t split_turns(const char *text, struct router_turn turns[TURNS_MAX])
{
    size_t count = 0;
    for (;;) {
        const char *sep = strchr(text, ROUTER_TURN_SEP);
        if (count == TURNS_MAX)
            memmove(turns, turns + 1, --count * sizeof(*turns));
        turns[count++] =
            (struct router_turn){.text = text, .len = sep ? (size_t)(sep - text) : strlen(text)};
        if (!sep)
            return count;
        text = sep + 1;
    }
}

static void decide_row(struct evaluation *v, struct router_scratch *s, const struct router_row *row,
                       const struct router_options *opt, size_t i)
{
    struct router_turn turns[TURNS_MAX];
    struct router_decision d;
    size_t count = split_turns(row->text, turns);
    uint64_t start = clock_ns();
    router_decide(v->h, s, turns, count, opt, &d, NULL);
    v->latency_ns[i] = clock_ns() - start;
    int truth = label_find(v->h, row->expert);
    v->outcomes[i] = (struct outcome){
        .confidence = (float)d.confidence,
        .truth = truth,
        .answer = d.label_idx,
        .right = truth >= 0 && truth == d.label_idx,
        .best_right = truth >= 0 && truth == d.best_idx,
        .abstained = d.reason == ROUTER_REASON_ABSTAIN,
        .counted = strcmp(row->expert, LABEL_ANY) != 0,
        .stage = d.stage,
    };
    v->counted += v->outcomes[i].counted;
}

static int compare_ns(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void sum_latency(struct evaluation *v, struct router_eval_report *r)
{
    qsort(v->latency_ns, v->count, sizeof(*v->latency_ns), compare_ns);
    r->latency_us_p50 = (double)v->latency_ns[v->count / 2] / 1e3;
    r->latency_us_p99 = (double)v->latency_ns[v->count * 99 / 100] / 1e3;
}

static void sum_confusion(const struct evaluation *v, struct router_eval_report *r)
{
    for (size_t i = 0; i < v->count; i++) {
        const struct outcome *o = &v->outcomes[i];
        if (o->counted && o->truth >= 0 && o->answer >= 0)
            r->confusion[(size_t)o->truth * r->labels + (size_t)o->answer]++;
    }
}

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : (double)NAN;
}

static void sum_labels(const struct evaluation *v, struct router_eval_report *r)
{
    double f1_sum = 0.0;
    size_t f1_count = 0;
    uint64_t unknown = 0;
    for (size_t i = 0; i < v->count; i++)
        unknown += v->outcomes[i].counted && v->outcomes[i].truth < 0;
    for (size_t t = 0; t < r->labels; t++) {
        uint64_t row = 0, column = 0, hit = r->confusion[t * r->labels + t];
        for (size_t j = 0; j < r->labels; j++) {
            row += r->confusion[t * r->labels + j];
            column += r->confusion[j * r->labels + t];
        }
        r->per_label[t] = share(hit, row);
        if (row > 0) {
            f1_sum += 2.0 * (double)hit / (double)(row + column);
            f1_count++;
        }
    }
    /* A label that the head lacks is never answered rightly. */
    r->per_label[r->labels] = unknown > 0 ? 0.0 : (double)NAN;
    r->macro_f1 = f1_count > 0 ? f1_sum / (double)f1_count : (double)NAN;
}

static void sum_failures(const struct evaluation *v, struct router_eval_report *r)
{
    int general = v->h->header.general_idx;
    uint64_t experts = 0, generals = 0, to_general = 0, to_other = 0, hijacked = 0;
    for (size_t i = 0; i < v->count; i++) {
        const struct outcome *o = &v->outcomes[i];
        if (!o->counted)
            continue;
        bool of_general = o->truth >= 0 && o->truth == general;
        bool to_generalist = o->answer < 0 || o->answer == general;
        generals += of_general;
        experts += !of_general;
        hijacked += of_general && !to_generalist;
        to_general += !of_general && to_generalist;
        to_other += !of_general && !to_generalist && !o->right;
    }
    r->expert_to_general = share(to_general, experts);
    r->expert_to_other = share(to_other, experts);
    r->general_to_expert = share(hijacked, generals);
}

static int compare_confidence(const void *a, const void *b)
{
    const struct outcome *x = a, *y = b;
    if (x->counted != y->counted)
        return x->counted ? -1 : 1;
    /* Among equals the wrong ones come first: the curve must not flatter. */
    if (x->confidence == y->confidence)
        return (int)x->best_right - (int)y->best_right;
    return x->confidence > y->confidence ? -1 : 1;
}

/* Sorts the outcomes: the last of the sums. */
static void sum_coverage(struct evaluation *v, struct router_eval_report *r)
{
    qsort(v->outcomes, v->count, sizeof(*v->outcomes), compare_confidence);
    for (size_t step = 0; step < BASE_COUNT(r->coverage_curve); step++) {
        size_t kept = (v->counted * (20 - step) + 10) / 20;
        uint64_t right = 0;
        for (size_t i = 0; i < kept; i++)
            right += v->outcomes[i].best_right;
        r->coverage_curve[step] = share(right, kept);
    }
}

static void sum_totals(const struct evaluation *v, struct router_eval_report *r)
{
    uint64_t right = 0, abstained = 0;
    float *confidence = mem_array(v->counted + 1, sizeof(*confidence));
    bool *hit = mem_array(v->counted + 1, sizeof(*hit));
    size_t n = 0;
    for (size_t i = 0; i < v->count; i++) {
        const struct outcome *o = &v->outcomes[i];
        if (!o->counted)
            continue;
        right += o->right;
        abstained += o->abstained;
        confidence[n] = o->confidence;
        hit[n++] = o->best_right;
    }
    for (size_t i = 0; i < v->count; i++)
        r->answered_by[v->outcomes[i].stage] += 1.0 / (double)v->count;
    r->n = v->counted;
    r->accuracy = share(right, n);
    r->abstained = share(abstained, n);
    r->coverage = 1.0 - r->abstained;
    r->ece = calibrate_ece(confidence, hit, n);
    free(confidence);
    free(hit);
}

enum err_code router_eval(const struct router_head *h, const struct router_data *data,
                          const struct router_options *opt, struct router_eval_report *ret,
                          struct err *e)
{
    if (data->count == 0)
        return err_set(e, ERR_INVALID, "no rows to evaluate");
    struct evaluation v = {.h = h, .count = data->count};
    v.outcomes = mem_array(data->count, sizeof(*v.outcomes));
    v.latency_ns = mem_array(data->count, sizeof(*v.latency_ns));
    struct router_scratch *s = router_scratch_open(h);
    for (size_t i = 0; i < data->count; i++)
        decide_row(&v, s, &data->rows[i], opt, i);
    router_scratch_close(&s);

    struct router_eval_report r = {.labels = h->header.labels};
    r.per_label = mem_array(r.labels + 1, sizeof(*r.per_label));
    r.confusion = mem_array(r.labels * r.labels, sizeof(*r.confusion));
    sum_latency(&v, &r);
    sum_totals(&v, &r);
    sum_confusion(&v, &r);
    sum_labels(&v, &r);
    sum_failures(&v, &r);
    sum_coverage(&v, &r);
    free(v.outcomes);
    free(v.latency_ns);
    *ret = r;
    return ERR_OK;
}

void router_eval_report_done(struct router_eval_report *r)
{
    free(r->per_label);
    free(r->confusion);
    *r = (struct router_eval_report){0};
}
