/* router/choice: who gets the prompt when several could, by what it costs to ask them. Pure:
 * residency and queues arrive as numbers, nobody is called. */
#ifndef SWITCHYARD_ROUTER_CHOICE_H
#define SWITCHYARD_ROUTER_CHOICE_H

#include "base/base.h"

#define ROUTER_CANDIDATES_MAX 256
#define ROUTER_POLICY_DEFAULT "score - lambda * (load_s + queue_s + prefill_s)"

/* One expert that may answer. Seconds are host time that the request would wait. */
struct router_candidate {
    float score;             /* probability of its label */
    float load_s;            /* until its weights are in hbm */
    float queue_s;           /* until it runs */
    float prefill_s;         /* to run again what another expert has run of this conversation */
    float bytes;             /* that would be loaded */
    int32_t resident, plain; /* all of it is in hbm; what the scores alone choose */
};

struct router_policy;
struct router_policy_options {
    const char
        *expr; /* NULL or "" = ROUTER_POLICY_DEFAULT; fields as above, and lambda, margin, best */
    double lambda; /* >= 0 */
    double margin; /* [0, 1]: only candidates this close to the best score are compared */
};
/* ERR_INVALID says line and column of what is wrong with the expression. */
enum err_code router_policy_open(const struct router_policy_options *opt,
                                 struct router_policy **ret, struct err *e) BASE_NODISCARD;
void router_policy_close(struct router_policy **p);
/* Without costs and with the expression of the house nothing but the scores counts. */
bool router_policy_is_plain(const struct router_policy *p);
/* Index of the winner; of equal utilities the plain one, else the first. `plain_idx` is what the
 * scores alone choose and always takes part. ret_utility [count] may be NULL; -inf outside the
 * margin. Any thread. */
size_t router_choose(const struct router_policy *p, const struct router_candidate *c, size_t count,
                     size_t plain_idx, float *ret_utility);

#endif
