/* Reading router.rules. An unknown key or expert is refused: a rule that silently does nothing is
 * how confidential prompts reach the wrong model. */
#include "daemon/routing_rules.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"

#define RULES_BYTES_MAX BASE_MIB
#define WORDS_MAX 256

static const char *const keys[] = {"regex",    "keywords",  "has_tools", "json_wanted",
                                   "language", "chars_min", "chars_max", "api_key",
                                   "header",   "pin",       "forbid",    "comment"};
static const char *const languages[] = {"latin",      "greek", "cyrillic", "hebrew", "arabic",
                                        "devanagari", "thai",  "kana",     "han",    "hangul"};

static enum err_code check_keys(json_t *rule, struct err *e)
{
    const char *key;
    json_t *value;
    json_object_foreach(rule, key, value)
    {
        bool known = false;
        for (size_t i = 0; i < BASE_COUNT(keys); i++)
            known |= strcmp(key, keys[i]) == 0;
        if (!known)
            return err_set(e, ERR_INVALID, "'%.40s' is no key of a rule", key);
    }
    return ERR_OK;
}

static enum err_code expert_idx(struct server *s, const char *name, int *ret, struct err *e)
{
    struct expert *ex = server_find_expert(s, name);
    if (ex == NULL)
        return err_set(e, ERR_NOT_FOUND, "there is no expert '%.80s'", name);
    *ret = (int)expert_index(ex);
    return ERR_OK;
}

/* A list of strings, at most WORDS_MAX. */
static enum err_code words_of(const json_t *rule, const char *key, const char **ret,
                              size_t *ret_count, struct err *e)
{
    const json_t *list = field_find(rule, key);
    *ret_count = 0;
    if (list == NULL)
        return ERR_OK;
    if (!json_is_array(list) || json_array_size(list) > WORDS_MAX)
        return err_set(e, ERR_INVALID, "'%s' must be a list of at most %d strings", key, WORDS_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *word = json_array_get(list, i);
        if (!json_is_string(word))
            return field_bad_type(e, key, "a list of strings", word);
        ret[(*ret_count)++] = json_string_value(word);
    }
    return ERR_OK;
}

static enum err_code flag_of(const json_t *rule, const char *key, int *ret, struct err *e)
{
    bool value = false;
    *ret = -1;
    if (field_find(rule, key) == NULL)
        return ERR_OK;
    enum err_code code = field_bool(rule, key, &value, e);
    *ret = value;
    return code;
}

static enum err_code check_language(const char *name, struct err *e)
{
    for (size_t i = 0; i < BASE_COUNT(languages); i++)
        if (strcmp(languages[i], name) == 0)
            return ERR_OK;
    return err_set(e, ERR_INVALID,
                   "language '%.40s' is a script: latin, greek, cyrillic, hebrew, arabic, "
                   "devanagari, thai, kana, han or hangul",
                   name);
}

static enum err_code read_conditions(const json_t *j, struct router_rule *rule, struct err *e)
{
    int64_t least = 0, most = 0;
    enum err_code code = field_text(j, "regex", &rule->regex, e);
    if (code == ERR_OK)
        code = flag_of(j, "has_tools", &rule->has_tools, e);
    if (code == ERR_OK)
        code = flag_of(j, "json_wanted", &rule->json_wanted, e);
    if (code == ERR_OK)
        code = field_text(j, "language", &rule->script, e);
    if (code == ERR_OK && rule->script != NULL)
        code = check_language(rule->script, e);
    if (code == ERR_OK)
        code = field_int(j, "chars_min", 0, 1 << 30, &least, e);
    if (code == ERR_OK)
        code = field_int(j, "chars_max", 0, 1 << 30, &most, e);
    if (code == ERR_OK)
        code = field_text(j, "api_key", &rule->api_key, e);
    if (code == ERR_OK)
        code = field_text(j, "header", &rule->header, e);
    rule->chars_min = (size_t)least;
    rule->chars_max = (size_t)most;
    return code;
}

static enum err_code add_rule(struct server *s, json_t *j, struct router_rules *rules,
                              struct err *e)
{
    const char *words[WORDS_MAX], *names[WORDS_MAX], *pin = NULL;
    int forbid[WORDS_MAX];
    struct router_rule rule = {.pin = -1, .keywords = words, .forbid = forbid};
    if (!json_is_object(j))
        return err_set(e, ERR_INVALID, "it is no object");
    enum err_code code = check_keys(j, e);
    if (code == ERR_OK)
        code = read_conditions(j, &rule, e);
    if (code == ERR_OK)
        code = words_of(j, "keywords", words, &rule.keywords_count, e);
    if (code == ERR_OK)
        code = words_of(j, "forbid", names, &rule.forbid_count, e);
    for (size_t i = 0; i < rule.forbid_count && code == ERR_OK; i++)
        code = expert_idx(s, names[i], &forbid[i], e);
    if (code == ERR_OK)
        code = field_text(j, "pin", &pin, e);
    if (code == ERR_OK && pin != NULL)
        code = expert_idx(s, pin, &rule.pin, e);
    if (code == ERR_OK && pin == NULL && rule.forbid_count == 0)
        code = err_set(e, ERR_INVALID, "it neither pins nor forbids an expert");
    return code == ERR_OK ? router_rules_add(rules, &rule, e) : code;
}

enum err_code routing_rules_open(struct server *s, const char *path, struct router_rules **ret,
                                 struct err *e)
{
    struct buf text = {0};
    json_error_t at;
    *ret = NULL;
    if (path[0] == 0)
        return ERR_OK;
    enum err_code code = file_read(path, RULES_BYTES_MAX, &text, e);
    if (code != ERR_OK)
        return err_wrap(e, "router.rules");
    json_t *root = json_loadb(text.data ? text.data : "", text.len, JSON_REJECT_DUPLICATES, &at);
    buf_done(&text);
    if (!json_is_array(root)) {
        json_decref(root);
        return err_set_param(e, ERR_INVALID, "router.rules",
                             "'%.200s' is no JSON list of rules (line "
                             "%d: %s)",
                             path, at.line, root ? "another value" : at.text);
    }
    struct router_rules *rules = router_rules_open();
    for (size_t i = 0; i < json_array_size(root) && code == ERR_OK; i++) {
        code = add_rule(s, json_array_get(root, i), rules, e);
        if (code != ERR_OK)
            err_wrap(e, "router.rules: '%.200s', rule %zu", path, i + 1);
    }
    json_decref(root);
    if (code != ERR_OK)
        router_rules_close(&rules);
    else
        *ret = rules;
    return code;
}
