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

#define TURNS_READ_MAX 4     /* earlier turns say nothing that these do not */
#define STAY_REFERRING 0.97f /* chance to stay of a turn that refers back */
/* A turn that refers back names no task, and what names no task looks like the generalist's: of its
 * evidence for the generalist only this much counts. */
#define GENERAL_REFERRING 0.1f

const char *router_reason_name(enum router_reason r)
{
    static const char *const names[] = {
        [ROUTER_REASON_MODEL] = "model",     [ROUTER_REASON_ONLY] = "only",
        [ROUTER_REASON_NGRAM] = "ngram",     [ROUTER_REASON_GENERAL] = "general",
        [ROUTER_REASON_ABSTAIN] = "abstain", [ROUTER_REASON_EMPTY] = "empty",
        [ROUTER_REASON_NO_HEAD] = "no_head",
    };
    return (size_t)r < BASE_COUNT(names) ? names[r] : "unknown";
}

struct router_scratch *router_scratch_open(const struct router_head *h)
{
    struct router_scratch *s = mem_alloc(sizeof(*s));
    s->text = text_scratch_open(&h->header.geometry);
    s->labels = h->header.labels;
    s->turn = mem_array(s->labels, sizeof(float));
    s->belief = mem_array(s->labels, sizeof(float));
    return s;
}

void router_scratch_close(struct router_scratch **s)
{
    if (!*s)
        return;
    text_scratch_close(&(*s)->text);
    free((*s)->turn);
    free((*s)->belief);
    free(*s);
    *s = NULL;
}

/* Posterior of one turn into s->turn; false if there is no word in it. */
static bool score_turn(const struct router_head *h, struct router_scratch *s,
                       const struct router_turn *turn)
{
    size_t count;
    const struct text_feature *f = text_vector(s->text, turn->text, turn->len, &count);
    if (text_word_count(s->text) == 0)
        return false;
    head_logits(h, f, count, s->turn);
    calibrate_softmax(s->turn, s->labels, (double)h->header.temperature, s->turn);
    return true;
}

/* belief = normalised turn * (stay * belief + (1 - stay) / labels). The generalist is kept only by
 * a turn that refers back: small talk before a request says nothing about the request. */
static void blend_turn(const struct router_head *h, struct router_scratch *s, bool refers_back)
{
    float stay = refers_back ? BASE_MAX(STAY_REFERRING, h->header.stay) : h->header.stay;
    float sum = 0.0f, fresh = (1.0f - stay) / (float)s->labels;
    for (size_t i = 0; i < s->labels; i++) {
        bool general = (int)i == h->header.general_idx;
        float kept = general && !refers_back ? 0.0f : stay * s->belief[i];
        float evidence = general && refers_back ? GENERAL_REFERRING * s->turn[i] : s->turn[i];
        s->belief[i] = evidence * (kept + fresh);
        sum += s->belief[i];
    }
    for (size_t i = 0; i < s->labels; i++)
        s->belief[i] = sum > 0.0f ? s->belief[i] / sum : s->turn[i];
}

bool decide_belief(const struct router_head *h, struct router_scratch *s,
                   const struct router_turn *turns, size_t turns_count)
{
    size_t first = turns_count > TURNS_READ_MAX ? turns_count - TURNS_READ_MAX : 0;
    bool any = false;
    for (size_t i = first; i < turns_count; i++) {
        if (!score_turn(h, s, &turns[i]))
            continue;
        if (any)
            blend_turn(h, s, followup_refers_back(turns[i].text, turns[i].len));
        else
            memcpy(s->belief, s->turn, s->labels * sizeof(float));
        any = true;
    }
    return any;
}

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
    *ret =
        (struct router_decision){.label_idx = -1, .best_idx = -1, .reason = ROUTER_REASON_NO_HEAD};
    if (!h || !s)
        return;
    int general = generalist_of(h, opt);
    if (!decide_belief(h, s, turns, turns_count)) {
        ret->reason = ROUTER_REASON_EMPTY;
        name_decision(h, general, ret);
        for (size_t i = 0; scores && i < s->labels; i++)
            scores[i] = 0.0f;
        return;
    }
    if (scores)
        memcpy(scores, s->belief, s->labels * sizeof(float));

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
        ret->reason = ROUTER_REASON_NGRAM;
    name_decision(h, ret->reason == ROUTER_REASON_ABSTAIN ? general : best, ret);
}
