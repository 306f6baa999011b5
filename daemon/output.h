/* From tokens to visible text: byte-exact detokenising, stop strings across token borders, UTF-8 held back
 * until whole. A pure state machine: the engine pushes tokens, takes text. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_OUTPUT_H
#define SWITCHYARD_DAEMON_OUTPUT_H

#include "experts/experts.h"

struct output {
    const struct tokenizer *tokenizer;
    char *const *stops; /* borrowed; none empty */
    uint32_t stops_count;
    struct detok detok;
    struct buf held;    /* text that may be the beginning of a stop string */
};
/* Reserves what the longest stop needs, so that pushing does not allocate in the common case. */
void output_init(struct output *o, const struct tokenizer *t, char *const *stops, uint32_t stops_count);
void output_done(struct output *o);
/* Appends what became visible to `visible`. True = a stop string was met: nothing after it is shown. */
bool output_push(struct output *o, int32_t token, struct buf *visible);
/* The end without a stop string: everything held is visible. */
void output_end(struct output *o, struct buf *visible);

#endif
