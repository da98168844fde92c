// All English texts of the page's frame; each page's own are below its name.

export const texts = {
  none: "–",
  noLimit: "no limit",
  title: (page) => (page ? `${page} – podyd` : "podyd"),
  nav: {
    label: "Pages", pods: "Pods", cards: "GPUs", account: "Account", admin: "Admin", wall: "Wall",
    skip: "Skip to the content", logout: "Log out", theme: "Colours", light: "light", dark: "dark",
    auto: "as the system",
  },
  live: {
    connecting: "Connecting …",
    lost: "Not live; trying to reconnect. Last data:",
  },
  work: { label: "Work under way", done: "done", dismiss: "Dismiss", failed: "failed" },
  dialog: {
    cancel: "Cancel", typeName: (name) => `Type “${name}” to confirm:`, close: "Close",
  },
  errors: {
    unreachable: "podyd cannot be reached.",
    notPodyd: (status) => `The answer (${status}) is not podyd's; perhaps a proxy's.`,
    noPage: "There is no such page.",
    crash: "The page failed; reload it. The browser's console has the reason.",
  },
  login: {
    title: "Log in", user: "User name", password: "Password", submit: "Log in",
    hint: "With your Linux account of this server.", ended: "You are logged out:",
    mustChange: "Your password has expired. Choose a new one.", newPassword: "New password",
    repeat: "New password, again", change: "Change it and log in",
    differ: "The new passwords differ.",
  },
};
