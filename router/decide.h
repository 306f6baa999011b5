/* router/decide: what decide.c and explain.c share. Private to router/. */
#ifndef SWITCHYARD_ROUTER_DECIDE_H
#define SWITCHYARD_ROUTER_DECIDE_H

#include "router/head.h"

/* Owned by one thread. */
struct router_scratch {
    struct text_scratch *text;
    size_t labels;
    float *scores; /* [DECIDE_TURNS_MAX, labels] posteriors of the turns in hand */
    float *belief; /* [labels] posterior of the conversation */
    float *
        vectors; /* [DECIDE_TURNS_MAX, width] of the turns in hand; NULL without an encoder stage */
};
#define DECIDE_TURNS_MAX 4 /* earlier turns say nothing that these do not */

/* What scoring the turns of one conversation came to. */
struct decide_turns {
    struct router_turn text[DECIDE_TURNS_MAX]; /* those that have a word, oldest first */
    bool
        encoded[DECIDE_TURNS_MAX]; /* its vector is in s->vectors, its posterior is the encoder's */
    size_t count;
    uint64_t stage_ns[ROUTER_STAGES];
};

/* Posterior over experts after the last turn into s->belief; false if no turn has a word. */
bool decide_belief(const struct router_head *h, struct router_scratch *s,
                   const struct router_turn *turns, size_t turns_count,
                   const struct router_options *opt, struct decide_turns *ret);

/* router/prototype.c: the added expert that a vector is closest to, -1 = none; its confidence. */
int prototypes_match(const struct router_prototypes *p, const float *vector,
                     double *ret_confidence);

/* Does the turn refer back to the one before ("and this one: ...", "same for ...")? */
bool followup_refers_back(const char *text, size_t len);

#endif
