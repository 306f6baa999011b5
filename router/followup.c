/* Words with which people refer back to the request before: they hold no topic of their own. */
#include "router/decide.h"

#include <string.h>

#define READ_MAX 96       /* bytes at the start of a turn in which a reference back stands */
#define STAY_FOLLOWUP 0.97f

/* At the start of the turn, as whole words. Written by hand: each is a way to say "once more". */
static const char *const openers[] = {
    "and", "also", "same", "again", "another", "next", "likewise", "ditto", "once more", "one more",
    "what about", "how about", "now this", "now the", "now for", "now do", "then this", "this one",
    "that one", "the next", "the following one", "this too", "do this", "do the same", "as well",
    "similarly", "more", "plus", "or", "ok and", "okay and", "ok now", "okay now", "thanks",
    "thank you", "great", "good", "et", "und", "y",
};
/* Anywhere near the start. */
static const char *const phrases[] = {
    "this one too", "same for", "same with", "same again", "same thing", "the same", "one more",
    "another one", "next one", "as before", "like before", "as above", "likewise",
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

float followup_stay(const char *text, size_t len, float stay)
{
    char plain[READ_MAX + 2];
    plain_start(text, len, plain);
    for (size_t i = 0; i < BASE_COUNT(openers); i++)
        if (at_word(plain, plain, openers[i]))
            return BASE_MAX(stay, STAY_FOLLOWUP);
    for (size_t i = 0; i < BASE_COUNT(phrases); i++)
        for (const char *at = plain; (at = strstr(at, phrases[i])); at++)
            if (at_word(plain, at, phrases[i]))
                return BASE_MAX(stay, STAY_FOLLOWUP);
    return stay;
}
