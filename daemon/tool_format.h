/* How the model behind a chat template is told of functions and writes its calls. Found out by
 * rendering small conversations and looking at what comes out: template sources are too various to
 * be read. A model whose template knows no tools gets a generic format by a system text. Private to
 * daemon/. */
#ifndef SWITCHYARD_DAEMON_TOOL_FORMAT_H
#define SWITCHYARD_DAEMON_TOOL_FORMAT_H

#include <jansson.h>

#include "experts/experts.h"

/* <tool_call> tags around JSON: of models trained so, and of everyone who has no form of his own. */
extern const struct grammar_call_form tool_form_tags;
/* JSON with "parameters", at the beginning of an answer only: Llama 3.1. */
extern const struct grammar_call_form tool_form_parameters;

/* What a template can do. Immutable after the probe. */
struct tool_format {
    const struct grammar_call_form *form;
    bool takes_tools;   /* lists `tools` in the prompt itself */
    bool renders_calls; /* shows the calls of past turns and their results */
    bool takes_system;
    bool short_ids;     /* wants ids of nine letters and digits */
    bool hidden_marker; /* the marker is a control token: it does not show in the answer's text */
};
/* `template` NULL: the generic format. `tokenizer` NULL: no marker is hidden. */
void tool_format_probe(const struct chat_template *template, const struct tokenizer *tokenizer,
                       struct tool_format *ret);

/* The conversation as this template can show it: calls and results become text where it knows none,
 * the functions are listed by the system text where it does not list them, ids get the wanted
 * length. `tools` NULL = none. Changes `messages` in place. */
void tool_format_messages(const struct tool_format *f, json_t *messages, const json_t *tools);

/* What stands at the end of the prompt so that a call must follow: up to the arguments of `name`,
 * or, with name NULL, up to the function's name. */
void tool_format_prefill(const struct tool_format *f, const char *name, struct buf *out);

#endif
