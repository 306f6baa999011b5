/* router/decide: what decide.c and explain.c share. Private to router/. */
#ifndef SWITCHYARD_ROUTER_DECIDE_H
#define SWITCHYARD_ROUTER_DECIDE_H

#include "router/head.h"

/* Owned by one thread. */
struct router_scratch {
    struct text_scratch *text;
    size_t labels;
    float *turn;   /* [labels] posterior of the turn in hand */
    float *belief; /* [labels] posterior of the conversation */
};

/* Posterior over experts after the last turn into s->belief; false if no turn has a word. */
bool decide_belief(const struct router_head *h, struct router_scratch *s,
                   const struct router_turn *turns, size_t turns_count);

/* Does the turn refer back to the one before ("and this one: ...", "same for ...")? */
bool followup_refers_back(const char *text, size_t len);

#endif
