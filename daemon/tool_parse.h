/* Calls of functions found in the text of an answer as it comes. A pure state machine: text in,
 * parts out. What may still become a call is held back; what turns out to be none is given out as
 * it was.
 *
 * Two ways lead to a call. Written in the model's own form under a grammar, it is known from its
 * marker on, so its arguments are given out piece by piece. And an answer that is nothing but JSON
 * objects with name and arguments of known functions is taken for calls too, once it is whole:
 * models that were trained on another form, or whose marker does not show, write that. Private to
 * daemon/. */
#ifndef SWITCHYARD_DAEMON_TOOL_PARSE_H
#define SWITCHYARD_DAEMON_TOOL_PARSE_H

#include <jansson.h>

#include "experts/experts.h"

enum tool_part {
    TOOL_PART_TEXT,      /* of the answer */
    TOOL_PART_CALL,      /* a call begins: the function's name */
    TOOL_PART_ARGUMENTS, /* the next piece of that call's arguments */
};
/* `text` is valid during the call only. */
typedef void tool_emit(void *ctx, enum tool_part part, const char *text, size_t len);

struct tool_parse_options {
    const struct grammar_call_form *form;
    const json_t *tools;            /* of the request; borrowed */
    enum grammar_tools_start start; /* what stood at the end of the prompt */
    const char *name;               /* start AT_ARGUMENTS: whose */
    bool constrained;               /* a grammar holds every call to the form */
    uint32_t calls_max;
};

struct tool_parse;
struct tool_parse *tool_parse_open(const struct tool_parse_options *opt);
void tool_parse_close(struct tool_parse **p);
void tool_parse_push(struct tool_parse *p, const char *text, size_t len, tool_emit *emit,
                     void *ctx);
/* The answer is over: what was held comes out. */
void tool_parse_end(struct tool_parse *p, tool_emit *emit, void *ctx);
uint32_t tool_parse_calls(const struct tool_parse *p); /* begun so far */

#endif
