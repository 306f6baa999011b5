/* Words with which people refer back to the request before: they hold no topic of their own. */
#include "router/decide.h"

#include <string.h>

#define READ_MAX 96 /* bytes at the start of a turn in which a reference back stands */

/* At the start of the turn, as whole words. Written by hand: each is a way to say "once more". */
static const char *const openers[] = {
    "additionally",
    "again",
    "also",
    "and",
    "another",
    "as before",
    "continue with",
    "ditto",
    "do it for",
    "do that for",
    "do the same",
    "do this",
    "following",
    "for this one",
    "further",
    "here is another",
    "here s another",
    "here is one more",
    "here s one more",
    "how about",
    "instead",
    "likewise",
    "more",
    "next",
    "now",
    "ok and",
    "ok next",
    "ok now",
    "okay and",
    "okay next",
    "okay now",
    "once more",
    "one more",
    "or",
    "plus",
    "repeat for",
    "repeat that for",
    "same",
    "similarly",
    "that one",
    "the following one",
    "the next",
    "the other one",
    "the same",
    "then",
    "this one",
    "this time",
    "this too",
    "try",
    "what about",
    "what if",
};
/* Anywhere near the start. */
static const char *const phrases[] = {
    "another one", "as above",     "as before",  "just like before", "like before",
    "like that",   "one more",     "same again", "same for",         "same thing",
    "same with",   "the next one", "the same",   "this one as well", "this one too",
};

static bool is_word(char c)
{
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return letter || (c >= '0' && c <= '9') || (uint8_t)c >= 0x80;
}

/* Lower case, every run of other characters one space. */
static size_t plain_start(const char *text, size_t len, char out[READ_MAX + 2])
{
    size_t n = 0;
    for (size_t i = 0; i < len && n < READ_MAX; i++) {
        if (is_word(text[i]))
            out[n++] = text[i] >= 'A' && text[i] <= 'Z' ? (char)(text[i] | 0x20) : text[i];
        else if (n > 0 && out[n - 1] != ' ')
            out[n++] = ' ';
    }
    if (n > 0 && out[n - 1] != ' ')
        out[n++] = ' ';
    out[n] = '\0';
    return n;
}

static bool at_word(const char *plain, const char *at, const char *cue)
{
    size_t len = strlen(cue);
    return (at == plain || at[-1] == ' ') && strncmp(at, cue, len) == 0 && at[len] == ' ';
}

bool followup_refers_back(const char *text, size_t len)
{
    char plain[READ_MAX + 2];
    plain_start(text, len, plain);
    for (size_t i = 0; i < BASE_COUNT(openers); i++)
        if (at_word(plain, plain, openers[i]))
            return true;
    for (size_t i = 0; i < BASE_COUNT(phrases); i++)
        for (const char *at = plain; (at = strstr(at, phrases[i])); at++)
            if (at_word(plain, at, phrases[i]))
                return true;
    return false;
}
