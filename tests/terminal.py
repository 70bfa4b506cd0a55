"""What the tests of interrupted trainings share."""

import io


class CtrlC(io.StringIO):
    """A terminal at which somebody presses Ctrl-C when the progress bar first shows a certain text."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.pressed = False

    def write(self, text: str) -> int:
        if self.text in text and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return super().write(text)
