/* Which expert a conversation will want next: counted from one turn to the next over all conversations. A
 * pure value: no clock, no memory tiers, so that tests drive it alone. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_MARKOV_H
#define SWITCHYARD_DAEMON_MARKOV_H

#include "base/base.h"

#define MARKOV_NONE UINT32_MAX

struct markov;
/* A few KiB; a row of counts for an expert is made when a conversation first leaves it. */
struct markov *markov_open(uint32_t experts);
void markov_close(struct markov **m);
/* A turn of the conversation (any number but 0 that tells it from others) went to `expert`. Returns the
 * expert that its next turn will probably want, if that is another one; MARKOV_NONE when nothing is
 * probable, or while less than half of what was lately foretold came true. It goes on foretelling to
 * itself then, and so finds out when it would be right again. */
uint32_t markov_turn(struct markov *m, uint64_t conversation, uint32_t expert);
struct markov_stats {
    uint64_t foretold, right; /* those whose conversation went on, and of them those that were right */
    bool on;
};
void markov_stats(const struct markov *m, struct markov_stats *ret);

#endif
