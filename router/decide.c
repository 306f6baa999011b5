/* One decision: scores of each user turn, blended over the conversation, then the choice.
 *
 * A conversation is read as a hidden Markov chain over experts: between two turns the expert stays
 * with some chance, otherwise any expert is as likely as another; each turn's text speaks through
 * the head's posterior. So a turn that is sure of itself ("Translate to French: ...") decides
 * alone, and one that is not ("and this one: ...") keeps the expert before it. */
#include "router/decide.h"
#include "router/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STAY_REFERRING 0.97f /* chance to stay of a turn that refers back */
/* A turn that refers back names no task, and what names no task looks like the generalist's: of its
 * evidence for the generalist only this much counts. */
#define GENERAL_REFERRING 0.1f

const char *router_reason_name(enum router_reason r)
{
    static const char *const names[] = {
        [ROUTER_REASON_MODEL] = "model",     [ROUTER_REASON_ONLY] = "only",
        [ROUTER_REASON_NGRAM] = "ngram",     [ROUTER_REASON_ENCODER] = "encoder",
        [ROUTER_REASON_GENERAL] = "general", [ROUTER_REASON_PROTOTYPE] = "prototype",
        [ROUTER_REASON_ABSTAIN] = "abstain", [ROUTER_REASON_EMPTY] = "empty",
        [ROUTER_REASON_NO_HEAD] = "no_head", [ROUTER_REASON_RULE] = "rule",
        [ROUTER_REASON_TOOL] = "tool",
    };
    return (size_t)r < BASE_COUNT(names) ? names[r] : "unknown";
}

const char *router_stage_name(enum router_stage s)
{
    static const char *const names[ROUTER_STAGES] = {"ngram", "encoder", "llm"};
    return (size_t)s < BASE_COUNT(names) ? names[s] : "unknown";
}

struct router_scratch *router_scratch_open(const struct router_head *h)
{
    struct router_scratch *s = mem_alloc(sizeof(*s));
    s->text = text_scratch_open(&h->header.geometry);
    s->labels = h->header.labels;
    s->scores = mem_array(s->labels * DECIDE_TURNS_MAX, sizeof(float));
    s->belief = mem_array(s->labels, sizeof(float));
    if (h->header.width > 0)
        s->vectors = mem_array((size_t)h->header.width * DECIDE_TURNS_MAX, sizeof(float));
    return s;
}

void router_scratch_close(struct router_scratch **s)
{
    if (!*s)
        return;
    text_scratch_close(&(*s)->text);
    free((*s)->scores);
    free((*s)->belief);
    free((*s)->vectors);
    free(*s);
    *s = NULL;
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* The n-gram stage's posterior of one turn; false if there is no word in it. */
static bool score_ngram(const struct router_head *h, struct router_scratch *s,
                        const struct router_turn *turn, float *ret)
{
    size_t count;
    const struct text_feature *f = text_vector(s->text, turn->text, turn->len, &count);
    if (text_word_count(s->text) == 0)
        return false;
    head_logits(h, f, count, ret);
    calibrate_softmax(ret, s->labels, (double)h->header.temperature, ret);
    return true;
}

static size_t best_of(const float *p, size_t labels)
{
    size_t best = 0;
    for (size_t i = 1; i < labels; i++)
        if (p[i] > p[best])
            best = i;
    return best;
}

static bool has_encoder(const struct router_head *h, const struct router_options *opt)
{
    const struct router_encoder *n = opt ? opt->encoder : NULL;
    return n && h->header.width > 0 && n->width == h->header.width && n->id == h->header.encoder_id;
}

/* May the n-gram stage answer alone? Not `general` where experts were added that it knows nothing
 * of: it calls everything so that it has not seen. */
static bool is_entitled(const struct router_head *h, const float *ngram,
                        const struct router_options *opt)
{
    size_t best = best_of(ngram, h->header.labels);
    if (opt->encoder_always)
        return false;
    if (opt->prototypes && router_prototypes_count(opt->prototypes) > 0 &&
        (int)best == h->header.general_idx)
        return false;
    return ngram[best] >= h->entitled[best];
}

/* Vectors of the turns that the n-grams may not answer, in one batch, and their new posteriors. If
 * the encoder fails the n-grams' stand. */
static void score_encoder(const struct router_head *h, struct router_scratch *s,
                          const struct router_options *opt, struct decide_turns *t)
{
    struct router_turn asked[DECIDE_TURNS_MAX];
    size_t of[DECIDE_TURNS_MAX], count = 0, width = h->header.width;
    for (size_t i = 0; i < t->count; i++)
        if (!is_entitled(h, s->scores + i * s->labels, opt)) {
            of[count] = i;
            asked[count++] = t->text[i];
        }
    struct err e;
    if (count == 0 ||
        opt->encoder->encode(opt->encoder->ctx, asked, count, s->vectors, &e) != ERR_OK)
        return;
    for (size_t k = count; k-- > 0;) { /* to their own places: from the back, since of[k] >= k */
        float *p = s->scores + of[k] * s->labels, *v = s->vectors + of[k] * width;
        memmove(v, s->vectors + k * width, width * sizeof(*v));
        head_encoder_posterior(h, v, p, p);
        t->encoded[of[k]] = true;
    }
}

/* belief = normalised turn * (stay * belief + (1 - stay) / labels). The generalist is kept only by
 * a turn that refers back: small talk before a request says nothing about the request. */
static void blend_turn(const struct router_head *h, struct router_scratch *s, const float *turn,
                       bool refers_back)
{
    float stay = refers_back ? BASE_MAX(STAY_REFERRING, h->header.stay) : h->header.stay;
    float sum = 0.0f, fresh = (1.0f - stay) / (float)s->labels;
    for (size_t i = 0; i < s->labels; i++) {
        bool general = (int)i == h->header.general_idx;
        float kept = general && !refers_back ? 0.0f : stay * s->belief[i];
        float evidence = general && refers_back ? GENERAL_REFERRING * turn[i] : turn[i];
        s->belief[i] = evidence * (kept + fresh);
        sum += s->belief[i];
    }
    for (size_t i = 0; i < s->labels; i++)
        s->belief[i] = sum > 0.0f ? s->belief[i] / sum : turn[i];
}

bool decide_belief(const struct router_head *h, struct router_scratch *s,
                   const struct router_turn *turns, size_t turns_count,
                   const struct router_options *opt, struct decide_turns *ret)
{
    *ret = (struct decide_turns){0};
    uint64_t start = clock_ns();
    size_t first = turns_count > DECIDE_TURNS_MAX ? turns_count - DECIDE_TURNS_MAX : 0;
    for (size_t i = first; i < turns_count; i++)
        if (score_ngram(h, s, &turns[i], s->scores + ret->count * s->labels))
            ret->text[ret->count++] = turns[i];
    uint64_t scored = clock_ns();
    ret->stage_ns[ROUTER_STAGE_NGRAM] = scored - start;
    if (has_encoder(h, opt)) {
        score_encoder(h, s, opt, ret);
        ret->stage_ns[ROUTER_STAGE_ENCODER] = clock_ns() - scored;
    }
    for (size_t i = 0; i < ret->count; i++) {
        const float *p = s->scores + i * s->labels;
        if (i > 0)
            blend_turn(h, s, p, followup_refers_back(ret->text[i].text, ret->text[i].len));
        else
            memcpy(s->belief, p, s->labels * sizeof(float));
    }
    return ret->count > 0;
}

/* The added expert that the conversation is with: a turn that refers back keeps it. */
static int find_prototype(const struct router_head *h, const struct router_scratch *s,
                          const struct router_options *opt, const struct decide_turns *t,
                          double *ret_confidence)
{
    int found = -1;
    if (!opt || !opt->prototypes)
        return -1;
    for (size_t i = 0; i < t->count; i++) {
        bool keeps = i > 0 && found >= 0 && followup_refers_back(t->text[i].text, t->text[i].len);
        if (keeps)
            continue;
        found = t->encoded[i] ? prototypes_match(opt->prototypes, s->vectors + i * h->header.width,
                                                 ret_confidence)
                              : -1;
    }
    return found;
}

/* ---- choice ---------------------------------------------------------------------------------- */

static void name_decision(const struct router_head *h, int label_idx, struct router_decision *d)
{
    d->label_idx = label_idx;
    if (label_idx >= 0)
        memcpy(d->label, h->labels[label_idx], ROUTER_NAME_MAX);
}

/* Labels that do not name an expert keep their probability: a prompt for a missing expert is then
 * one that nobody is sure of, and not one for whoever comes second. */
static int best_allowed(const struct router_scratch *s, const struct router_options *opt,
                        size_t *ret_allowed)
{
    int best = -1;
    *ret_allowed = 0;
    for (size_t i = 0; i < s->labels; i++) {
        if (opt && opt->label_allowed && !opt->label_allowed[i])
            continue;
        ++*ret_allowed;
        if (best < 0 || s->belief[i] > s->belief[best])
            best = (int)i;
    }
    return best;
}

static int generalist_of(const struct router_head *h, const struct router_options *opt)
{
    bool given = opt && opt->generalist_idx >= 0 && opt->generalist_idx < (int)h->header.labels;
    return given ? opt->generalist_idx : h->header.general_idx;
}

void router_decide(const struct router_head *h, struct router_scratch *s,
                   const struct router_turn *turns, size_t turns_count,
                   const struct router_options *opt, struct router_decision *ret, float *scores)
{
    struct decide_turns t;
    *ret = (struct router_decision){
        .label_idx = -1, .best_idx = -1, .prototype_idx = -1, .reason = ROUTER_REASON_NO_HEAD};
    if (!h || !s)
        return;
    int general = generalist_of(h, opt);
    if (!decide_belief(h, s, turns, turns_count, opt, &t)) {
        ret->reason = ROUTER_REASON_EMPTY;
        name_decision(h, general, ret);
        for (size_t i = 0; scores && i < s->labels; i++)
            scores[i] = 0.0f;
        return;
    }
    if (scores)
        memcpy(scores, s->belief, s->labels * sizeof(float));
    memcpy(ret->stage_ns, t.stage_ns, sizeof(t.stage_ns));
    bool encoded = t.encoded[t.count - 1];
    ret->stage = encoded ? ROUTER_STAGE_ENCODER : ROUTER_STAGE_NGRAM;

    size_t allowed;
    double threshold = opt && !isnan(opt->threshold) ? opt->threshold : (double)h->header.threshold;
    int best = best_allowed(s, opt, &allowed);
    ret->best_idx = best;
    ret->confidence = best >= 0 ? (double)s->belief[best] : 0.0;
    if (best >= 0 && best == general)
        ret->reason = ROUTER_REASON_GENERAL;
    else if (allowed == 1)
        ret->reason = ROUTER_REASON_ONLY;
    else if (best < 0 || ret->confidence < threshold)
        ret->reason = ROUTER_REASON_ABSTAIN;
    else
        ret->reason = encoded ? ROUTER_REASON_ENCODER : ROUTER_REASON_NGRAM;
    name_decision(h, ret->reason == ROUTER_REASON_ABSTAIN ? general : best, ret);
    double confidence = 0.0;
    ret->prototype_idx = find_prototype(h, s, opt, &t, &confidence);
    if (ret->prototype_idx < 0)
        return;
    ret->reason = ROUTER_REASON_PROTOTYPE;
    ret->label_idx = -1;
    ret->confidence = confidence;
    snprintf(ret->label, sizeof(ret->label), "%s",
             router_prototypes_name(opt->prototypes, (size_t)ret->prototype_idx));
}
