/* router/rules: what the operator knows better than any score. Rules are asked in order before the
 * scores; the first that matches and pins decides, those that forbid add up. */
#ifndef SWITCHYARD_ROUTER_RULES_H
#define SWITCHYARD_ROUTER_RULES_H

#include "router/router.h"

/* Every condition that is set must hold; none set = always. Strings are borrowed until rules_add
 * returns. */
struct router_rule {
    const char *regex;           /* PCRE2, UTF-8, searched in the last user turn */
    const char *const *keywords; /* any of them, as whole words, letters of any case */
    size_t keywords_count;
    int has_tools, json_wanted; /* 1, 0, or -1 = either */
    const char *script; /* most letters of the turn are "latin", "cyrillic", "arabic", "han"... */
    size_t chars_min, chars_max; /* bytes of the turn; 0 = no limit */
    const char *api_key;         /* exactly */
    const char *header;          /* "name" or "name: value" */
    int pin;                     /* expert index, -1 = none */
    const int *forbid;           /* expert indices */
    size_t forbid_count;
};
struct router_rules;
struct router_rules *router_rules_open(void);
void router_rules_close(struct router_rules **r);
/* ERR_INVALID with position and cause for a regex that does not compile. */
enum err_code router_rules_add(struct router_rules *r, const struct router_rule *rule,
                               struct err *e) BASE_NODISCARD;

struct router_rule_input {
    struct router_turn turn; /* the last user turn */
    bool has_tools, json_wanted;
    const char *api_key;                                /* NULL = none */
    const char *(*header)(void *ctx, const char *name); /* NULL = no headers */
    void *header_ctx;
};
/* forbidden [experts] gets true where a rule forbids. Returns the pinned expert, -1 = none; a rule
 * that pins an expert which an earlier one forbids is passed over. Time is linear in the turn, of
 * which the first 16 KiB are read, and the regex's work is limited. Any thread. */
int router_rules_apply(const struct router_rules *r, const struct router_rule_input *in,
                       bool *forbidden, size_t experts);

#endif
