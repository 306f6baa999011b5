/* Rules before scores. A regex gets a limit on its work: a pattern that explodes on some prompt
 * does not match it, and nobody waits. */
#include "router/router.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#define READ_MAX (16 * BASE_KIB)
#define MATCH_LIMIT 100000

struct rule {
    pcre2_code *regex;
    char **keywords;
    size_t keywords_count;
    int has_tools, json_wanted, pin;
    char *script, *api_key, *header_name, *header_value;
    size_t chars_min, chars_max;
    int *forbid;
    size_t forbid_count;
};

struct router_rules {
    struct rule *items;
    size_t count;
};

struct router_rules *router_rules_open(void)
{
    return mem_alloc(sizeof(struct router_rules));
}

static void rule_done(struct rule *r)
{
    pcre2_code_free(r->regex);
    for (size_t i = 0; i < r->keywords_count; i++)
        free(r->keywords[i]);
    free(r->keywords);
    free(r->script);
    free(r->api_key);
    free(r->header_name);
    free(r->header_value);
    free(r->forbid);
}

void router_rules_close(struct router_rules **r)
{
    if (!*r)
        return;
    for (size_t i = 0; i < (*r)->count; i++)
        rule_done(&(*r)->items[i]);
    free((*r)->items);
    free(*r);
    *r = NULL;
}

static char *copy_or_null(const char *s)
{
    return s && s[0] ? mem_strdup(s) : NULL;
}

static enum err_code compile(const char *text, pcre2_code **ret, struct err *e)
{
    int number;
    PCRE2_SIZE at;
    PCRE2_UCHAR why[120];
    *ret = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
                         PCRE2_UTF | PCRE2_MATCH_INVALID_UTF, &number, &at, NULL);
    if (*ret)
        return ERR_OK;
    pcre2_get_error_message(number, why, sizeof(why));
    return err_set(e, ERR_INVALID, "regex '%.80s': %s at character %zu", text, (const char *)why,
                   at + 1);
}

enum err_code router_rules_add(struct router_rules *r, const struct router_rule *in, struct err *e)
{
    struct rule rule = {.has_tools = in->has_tools,
                        .json_wanted = in->json_wanted,
                        .pin = in->pin,
                        .chars_min = in->chars_min,
                        .chars_max = in->chars_max};
    if (in->regex && in->regex[0]) {
        enum err_code code = compile(in->regex, &rule.regex, e);
        if (code != ERR_OK)
            return code;
    }
    rule.keywords = mem_array(in->keywords_count + 1, sizeof(*rule.keywords));
    for (size_t i = 0; i < in->keywords_count; i++)
        if (in->keywords[i][0])
            rule.keywords[rule.keywords_count++] = mem_strdup(in->keywords[i]);
    rule.script = copy_or_null(in->script);
    rule.api_key = copy_or_null(in->api_key);
    rule.header_name = copy_or_null(in->header);
    char *colon = rule.header_name ? strchr(rule.header_name, ':') : NULL;
    if (colon) {
        *colon = 0;
        rule.header_value = mem_strdup(colon + 1 + strspn(colon + 1, " "));
    }
    rule.forbid = mem_array(in->forbid_count + 1, sizeof(*rule.forbid));
    rule.forbid_count = in->forbid_count;
    for (size_t i = 0; i < in->forbid_count; i++)
        rule.forbid[i] = in->forbid[i];
    r->items = mem_grow(r->items, r->count + 1, sizeof(*r->items));
    r->items[r->count++] = rule;
    return ERR_OK;
}

/* ---- conditions --------------------------------------------------------------------------------
 */

static bool matches_regex(const struct rule *r, struct router_turn t)
{
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    bool found = false;
    if (data && limits) {
        pcre2_set_match_limit(limits, MATCH_LIMIT);
        pcre2_set_depth_limit(limits, MATCH_LIMIT);
        found = pcre2_match(r->regex, (PCRE2_SPTR)t.text, t.len, 0, 0, data, limits) >= 0;
    }
    pcre2_match_context_free(limits);
    pcre2_match_data_free(data);
    return found;
}

static bool is_inner(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' ||
           (uint8_t)c >= 0x80;
}

static bool has_keyword(struct router_turn t, const char *word)
{
    size_t len = strlen(word);
    for (size_t at = 0; at + len <= t.len; at++) {
        bool starts = at == 0 || !is_inner(t.text[at - 1]) || !is_inner(word[0]);
        bool ends = at + len == t.len || !is_inner(t.text[at + len]) || !is_inner(word[len - 1]);
        if (starts && ends && strncasecmp(t.text + at, word, len) == 0)
            return true;
    }
    return false;
}

static bool has_any_keyword(const struct rule *r, struct router_turn t)
{
    for (size_t i = 0; i < r->keywords_count; i++)
        if (has_keyword(t, r->keywords[i]))
            return true;
    return r->keywords_count == 0;
}

static const struct {
    const char *name;
    uint32_t from, to;
} scripts[] = {
    {"latin", 'A', 0x24F},      {"greek", 0x370, 0x3FF},  {"cyrillic", 0x400, 0x52F},
    {"hebrew", 0x590, 0x5FF},   {"arabic", 0x600, 0x77F}, {"devanagari", 0x900, 0x97F},
    {"thai", 0xE00, 0xE7F},     {"kana", 0x3040, 0x30FF}, {"han", 0x3400, 0x9FFF},
    {"hangul", 0xAC00, 0xD7AF},
};

static bool is_letter(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LO:
        return true;
    default:
        return false;
    }
}

/* Are more than half of the letters of this script? */
static bool is_script(struct router_turn t, const char *name)
{
    size_t letters = 0, of = 0, script = 0;
    while (script < BASE_COUNT(scripts) && strcmp(scripts[script].name, name) != 0)
        script++;
    if (script == BASE_COUNT(scripts))
        return false;
    for (size_t at = 0; at < t.len;) {
        uint32_t cp;
        unsigned n = utf8_decode(t.text + at, t.len - at, &cp);
        at += n ? n : 1;
        if (n == 0 || !is_letter(cp))
            continue;
        letters++;
        of += cp >= scripts[script].from && cp <= scripts[script].to;
    }
    return of * 2 > letters;
}

static bool header_matches(const struct rule *r, const struct router_rule_input *in)
{
    const char *value = in->header ? in->header(in->header_ctx, r->header_name) : NULL;
    return value != NULL && (r->header_value == NULL || strcmp(value, r->header_value) == 0);
}

static bool rule_matches(const struct rule *r, const struct router_rule_input *in)
{
    struct router_turn read = {in->turn.text, BASE_MIN(in->turn.len, (size_t)READ_MAX)};
    if ((r->has_tools >= 0 && r->has_tools != in->has_tools) ||
        (r->json_wanted >= 0 && r->json_wanted != in->json_wanted) ||
        (r->chars_min > 0 && in->turn.len < r->chars_min) ||
        (r->chars_max > 0 && in->turn.len > r->chars_max))
        return false;
    if (r->api_key && (in->api_key == NULL || strcmp(in->api_key, r->api_key) != 0))
        return false;
    if (r->header_name && !header_matches(r, in))
        return false;
    if (r->script && !is_script(read, r->script))
        return false;
    return has_any_keyword(r, read) && (r->regex == NULL || matches_regex(r, read));
}

int router_rules_apply(const struct router_rules *r, const struct router_rule_input *in,
                       bool *forbidden, size_t experts)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct rule *rule = &r->items[i];
        if (!rule_matches(rule, in))
            continue;
        for (size_t k = 0; k < rule->forbid_count; k++)
            if (rule->forbid[k] >= 0 && (size_t)rule->forbid[k] < experts)
                forbidden[rule->forbid[k]] = true;
        if (rule->pin >= 0 && (size_t)rule->pin < experts && !forbidden[rule->pin])
            return rule->pin;
    }
    return -1;
}
